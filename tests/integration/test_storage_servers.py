"""One story on every kind of object store: a worker is killed, then the driver, and another driver goes on. And what Ray Train left there is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import holdfast as train
from holdfast.persistence import layout
from holdfast.persistence.metrics_log import MetricsLog, encode_line, read_lines
from holdfast.stores import open_store
from support.counting import fit

TESTS = Path(__file__).parents[1]
RAY_RUN = TESTS / "compat" / "ray" / "run"


def test_a_job_survives_its_worker_and_its_driver(object_server):
    bucket = object_server.make_bucket()
    url = object_server.url(bucket, "exp of mine")
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    first = subprocess.run(
        [sys.executable, "-m", "support.counting", url, "20"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert first.returncode == -signal.SIGKILL, first.stderr

    result = fit(url, 8)
    # Step 4 was committed, and step 5 never reported.
    assert (result.metrics["step"], result.metrics["first"]) == (7, 5)
    run = train.Run(object_server.url(bucket, "exp of mine/run"))
    assert [each.metrics["step"] for each in run.checkpoints] == [6, 7]
    assert not any(run.verify().values())
    assert run.driver is None
    steps = [each["metrics"]["step"] for each in run.reports()]
    assert steps[-1] == 7
    # Of the driver that was killed, lines of its last second may be lost, and no checkpoint.
    assert {0, 1, 2, 3, 4, 5, 6, 7} >= set(steps) >= {5, 6, 7}
    # Nothing of what was deleted, or of what the dead were writing.
    kept = {each.checkpoint.path.rpartition("/")[2] for each in run.checkpoints}
    store = open_store(url)
    names = {entry.key.split("/")[1] for entry in store.list(recursive=True)}
    assert {each for each in names if not each.startswith(".")} == kept
    assert {entry.key.split("/")[1] for entry in store.list("run/.holdfast/staging", recursive=True)} == set()


def _first_line() -> str:
    with train.get_checkpoint().as_directory() as directory:
        return Path(directory, "rank-0.txt").read_text()


def test_the_metrics_of_a_long_run_are_few_objects(object_server):
    store = open_store(object_server.url(object_server.make_bucket(), "run"))
    log = MetricsLog(store, 1, 1)
    for report in range(1, 131):  # as many seconds
        log.append(encode_line(report, 1, 1.0, None, b'{"loss":1}', None))
        log.flush()
    log.close()
    assert [line.report for line in read_lines(store, {})] == list(range(1, 131))
    assert len(list(store.list(layout.METRICS))) <= 60


def test_a_run_of_ray_trains_is_read_and_gone_on_with(object_server) -> None:
    bucket = object_server.make_bucket()
    source = object_server.url(bucket, "ray results/run")
    store = open_store(source)
    for path in RAY_RUN.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(RAY_RUN).as_posix(), path.read_bytes())
    before = sorted((entry.key, entry.mtime_s) for entry in store.list(recursive=True))
    assert [each.metrics["step"] for each in train.Run(source).checkpoints] == [1, 3, 4]
    assert train.Result.from_path(source).metrics["step"] == 4
    result = train.DataParallelTrainer(
        _first_line,
        run_config=train.RunConfig(name="next", storage_path=object_server.url(bucket, "exp"), progress="quiet"),
        resume_from=source,
    ).fit()
    assert result.return_value == "step 4 of rank 0\n"
    assert sorted((entry.key, entry.mtime_s) for entry in store.list(recursive=True)) == before
