"""Whole jobs whose runs lie in a bucket: what a local directory guarantees holds there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointConfig, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from holdfast.stores import open_store
from support.runs import open_run
from support.s3_proxy import SLOW_DOWN, Fault, running_proxy
from support.s3_server import KEYS
from support.waiting import beside, wait_until

pytestmark = pytest.mark.usefixtures("keys")


def count(config):
    """Counts to `steps` through checkpoints of both ranks; rank 1 is killed at step 3 of the first attempt."""
    rank = train.get_context().get_world_rank()
    first = 0
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            first = json.loads(Path(directory, "state.json").read_text())["step"] + 1
            assert Path(directory, "shards", "1.bin").stat().st_size == 10_000
    for step in range(first, config["steps"]):
        print("at step", step)
        if step == 3 and checkpoint is None:
            train.collective.barrier()  # what no rank has reported cannot be committed
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        make = train.staging_directory if config["stages"] else tempfile.TemporaryDirectory
        with make() as directory:
            Path(directory, "shards").mkdir()
            Path(directory, "shards", f"{rank}.bin").write_bytes(os.urandom(10_000))
            if rank == 0:
                Path(directory, "state.json").write_text(json.dumps({"step": step}))
            train.report({"step": step, "first": first}, Checkpoint.from_directory(directory), **config["how"])


def fit(url, steps, *, stages=False, how=None):
    return DataParallelTrainer(
        count,
        train_loop_config={"steps": steps, "stages": stages, "how": how or {}},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run",
            storage_path=url,
            progress="quiet",
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="step"),
        ),
    ).fit()


@pytest.mark.parametrize("mode", ["sync", "async", "staging"])
def test_a_job_comes_back_from_a_bucket_after_a_kill_and_on_another_day(server, mode):
    url = server.url(server.make_bucket(), "exp")
    how = {"checkpoint_upload_mode": train.CheckpointUploadMode.ASYNC} if mode == "async" else {}
    result = fit(url, 5, stages=mode == "staging", how=how)
    # Also what was handed over, and not committed when the worker was killed.
    assert (result.metrics["step"], result.metrics["first"]) == (4, 3)
    again = fit(url, 7, stages=mode == "staging", how=how)
    assert (again.metrics["step"], again.metrics["first"]) == (6, 5)

    logs = {
        entry.key: open_store(url).read(entry.key)
        for entry in open_store(url).list("run/.holdfast/logs", recursive=True)
    }
    told = logs.pop("run/.holdfast/logs/attempt_000001/rank_00001.log.end")
    assert told == b"holdfast.errors.WorkerDiedError: rank 1 was killed by SIGKILL\n"
    assert len(logs) == 6  # of three attempts, two ranks each
    assert logs["run/.holdfast/logs/attempt_000003/rank_00001.log"] == b"at step 5\nat step 6\n"

    run = train.Run(url.replace("/exp?", "/exp/run?"))
    assert [each.metrics["step"] for each in run.checkpoints] == [5, 6]
    assert not any(run.verify().values())
    assert run.driver is None
    best = run.best()
    assert best is not None
    with best.checkpoint.as_directory() as directory:
        assert json.loads(Path(directory, "state.json").read_text()) == {"step": 6}
    steps = [each["metrics"]["step"] for each in run.reports()]
    assert steps[-1] == 6
    assert set(steps) == set(range(7))
    # Nothing of deleted checkpoints, and no upload that was begun and not ended.
    names = {entry.key.split("/")[1] for entry in open_store(url).list(recursive=True)}
    assert {each for each in names if not each.startswith(".")} == {
        each.checkpoint.path.rpartition("/")[2] for each in run.checkpoints
    }


def test_a_second_driver_of_a_live_run_is_refused(server, monkeypatch):
    url = server.url(server.make_bucket(), "exp/run")
    store = open_store(url)
    with contextlib.closing(open_run(store)):
        run = train.Run(url)
        assert run.driver is not None
        assert f"process {os.getpid()}" in run.driver
        with pytest.raises(train.RunInUseError, match="is being driven by"):
            open_run(store)
    # It ended well: the next one need not wait.
    open_run(store).close()
    assert train.Run(url).driver is None


def test_a_driver_that_was_killed_is_replaced_at_once(server, caplog):
    url = server.url(server.make_bucket(), "exp")
    script = """
        import os, sys
        import holdfast as train
        def loop(config):
            train.report({"a": 1})
            os.kill(os.getppid() if config is None else config["driver"], 9)
        train.DataParallelTrainer(
            loop,
            train_loop_config={"driver": os.getpid()},
            run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet"),
        ).fit()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), url], env={**os.environ, **KEYS}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert fit(url, 1).metrics["step"] == 0
    assert "whether the driver of" not in caplog.text  # nobody waited to see


def test_a_store_that_is_down_for_a_while_slows_a_job_and_loses_nothing(server):
    with running_proxy(server.port) as proxy:
        bucket = server.make_bucket()
        url = server.url(bucket, "exp", port=proxy.port, max_retries="1", retry_timeout="2")
        store = open_store(server.url(bucket, "exp"))
        proxy.fail(Fault("PUT", contains="/checkpoint_000002/", times=-1, answers=SLOW_DOWN))

        def heal_after_failures():
            try:
                wait_until(lambda: proxy.count("PUT", "/checkpoint_000002/") >= 5, "it was tried again")
            finally:
                proxy.heal()

        with beside(heal_after_failures):
            result = fit(url, 4)
        assert (result.metrics["step"], result.metrics["first"]) == (3, 3)  # no attempt failed of it
        assert store.exists("run/checkpoint_000004/.manifest.json")


def validate(checkpoint):
    with checkpoint.as_directory() as directory:
        return {"checked": json.loads(Path(directory, "state.json").read_text())["step"]}


def report_to_be_validated(config):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "state.json").write_text(json.dumps({"step": 7}))
        train.report({"step": 7}, Checkpoint.from_directory(directory), validation=True)


def test_a_validation_reads_its_checkpoint_from_the_bucket(server):
    url = server.url(server.make_bucket(), "exp")
    DataParallelTrainer(
        report_to_be_validated,
        validation_config=train.ValidationConfig(fn=validate),
        run_config=RunConfig(name="run", storage_path=url, progress="quiet"),
    ).fit()
    (checkpoint,) = train.Run(url.replace("/exp?", "/exp/run?")).checkpoints
    assert checkpoint.metrics == {"step": 7, "checked": 7}


def stores_by_itself(config):
    rank = train.get_context().get_world_rank()
    if not train.get_checkpoint():
        name = "mine"
        store = open_store(config["url"].replace("/exp?", f"/exp/run/{name}?"))
        store.write(f"shards/{rank}.bin", b"x" * (10 + rank))
        path = train.get_context().get_storage().build_checkpoint_path_from_name(name)
        how = train.CheckpointUploadMode.NO_UPLOAD
        train.report({"step": 0}, Checkpoint(path), checkpoint_upload_mode=how)

    def upload(checkpoint, name):
        store = open_store(config["url"].replace("/exp?", f"/exp/run/{name}?"))
        store.write(f"copied/{rank}.bin", Path(checkpoint.path, "file").read_bytes())
        return Checkpoint(train.get_context().get_storage().build_checkpoint_path_from_name(name))

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "file").write_bytes(b"y" * (20 + rank))
        train.report({"step": 1}, Checkpoint(directory), checkpoint_upload_fn=upload)
    assert train.get_checkpoint().path.startswith("s3://")
    with train.get_checkpoint().as_directory() as directory:
        assert sorted(path.name for path in Path(directory, "copied").iterdir()) == ["0.bin", "1.bin"]


def test_checkpoints_that_a_user_has_stored_are_registered(server, caplog):
    url = server.url(server.make_bucket(), "exp")
    trainer = DataParallelTrainer(
        stores_by_itself,
        train_loop_config={"url": url},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="run", storage_path=url, progress="quiet"),
    )
    trainer.fit()
    run = train.Run(url.replace("/exp?", "/exp/run?"))
    first, second = run.checkpoints
    assert first.checkpoint.path.endswith("/mine")
    assert (first.metrics, second.metrics) == ({"step": 0}, {"step": 1})
    with first.checkpoint.as_directory() as directory:
        assert Path(directory, "shards", "1.bin").read_bytes() == b"x" * 11
    # Sizes are known, digests are not.
    assert not run.verify()
    assert "only the sizes of 2 of 2 files were compared" in caplog.text
    assert [file.digest for file in first.checkpoint.files()] == [None, None]
    open_store(url.replace("/exp?", "/exp/run/mine?")).write("shards/1.bin", b"x")
    assert "bytes instead of 11" in str(run.verify()["mine"])


def test_what_lies_elsewhere_is_not_registered(server):
    url = server.url(server.make_bucket(), "exp")

    def loop():
        how = train.CheckpointUploadMode.NO_UPLOAD
        for path in ("s3://bucket/other/run/mine", "/tmp"):
            with pytest.raises(train.CheckpointSourceError, match="does not lie at"):
                train.report({}, Checkpoint(path), checkpoint_upload_mode=how)
        with pytest.raises(train.ConfigurationError, match="begins its options"):
            train.report({}, Checkpoint("/tmp"), checkpoint_dir_name="what?")
        place = train.get_context().get_storage().build_checkpoint_path_from_name("nothing")
        with pytest.raises(train.EmptyCheckpointError, match="/exp/run/nothing, where it was registered"):
            train.report({}, Checkpoint(place), checkpoint_upload_mode=how)

    config = RunConfig(name="run", storage_path=url, progress="quiet")
    assert DataParallelTrainer(loop, run_config=config).fit().checkpoint is None
