"""A bucket that takes its time to take a checkpoint up: nobody waits for it who need not, and no two are stored at one place."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, RunConfig, ScalingConfig
from holdfast.stores import open_store
from support.drivers import Driver
from support.s3_proxy import Fault
from support.waiting import LIMIT_S, await_file, beside

MARK = ".holdfast/pending/checkpoint_000001"


def fit(function, url, base, *, workers=2, **options):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": base},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="run", storage_path=url, progress="quiet", **options),
    ).fit()


@contextlib.contextmanager
def let_go_when(path, hold):
    """Sets an event once a file is there, beside the driver, which is this process; in any case at last."""

    def wait():
        try:
            await_file(path)
        finally:
            hold.set()

    with beside(wait):
        yield


def report_files(step, name=None, **files):
    with tempfile.TemporaryDirectory() as directory:
        for file, text in files.items():
            Path(directory, file).write_text(text)
        return train.report(
            {"step": step},
            Checkpoint.from_directory(directory),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )


def goes_on(config):
    pending = report_files(1, **{f"rank_{train.get_context().get_world_rank()}": "1"})
    for number in range(20):
        train.report({"beside": number})
    assert not pending.done()
    train.collective.barrier()  # no rank lets it go on before the other has looked
    (config["base"] / "went on").touch()
    assert pending.result(LIMIT_S)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("method", "contains"), [("PUT", MARK), ("GET", "prefix=exp%2Frun%2Fcheckpoint_000001")], ids=["mark", "look"]
)
def test_training_goes_on_while_the_place_of_a_checkpoint_is_prepared(
    server, bucket, url, proxy, tmp_path, workers, method, contains
):
    hold = threading.Event()
    held = proxy.fail(Fault(method, contains, waits_for=hold))
    with let_go_when(tmp_path / "went on", hold):
        fit(goes_on, url, tmp_path, workers=workers)
    assert held.times == 0  # else there was nothing to wait for
    run = train.Run(server.url(bucket, "exp/run"))
    assert [each.metrics for each in run.checkpoints] == [{"step": 1}]
    assert not any(run.verify().values())


STOPPED = """
import sys, tempfile, time
from pathlib import Path
import holdfast as train
base = Path(sys.argv[2])
def loop():
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "model").write_text("weights")
        train.report({}, train.Checkpoint(directory), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
    try:
        (base / "up").touch()  # the signal may come before this line has ended
        time.sleep(600)
    finally:
        (base / "unwound").touch()
try:
    train.DataParallelTrainer(loop, run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet")).fit()
except train.TrainingInterrupted as error:
    print("interrupted", error.result.checkpoint is not None, flush=True)
"""


def test_a_signal_is_obeyed_while_the_place_of_a_checkpoint_is_prepared(server, bucket, url, proxy, tmp_path):
    hold = threading.Event()
    proxy.fail(Fault("PUT", MARK, waits_for=hold))
    with Driver(STOPPED, url, tmp_path) as driver:
        driver.await_file(tmp_path / "up")
        driver.send_signal(signal.SIGTERM)
        driver.await_file(tmp_path / "unwound")
        hold.set()
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out.split() == ["interrupted", "True"]
    assert not any(train.Run(server.url(bucket, "exp/run")).verify().values())


def reports_one_name_twice(config):
    rank = train.get_context().get_world_rank()
    first = report_files(1, "same", **{f"rank_{rank}": "1", f"first_{rank}": "1"})
    with pytest.raises(train.CheckpointExistsError, match="'same'"):
        report_files(2, "same", **{f"rank_{rank}": "2", f"second_{rank}": "2"})
    train.collective.barrier()
    (config["base"] / "went on").touch()
    report_files(3, "other", **{f"rank_{rank}": "3"}).result(LIMIT_S)
    assert first.done()
    assert first.exception() is None


@pytest.mark.parametrize("kind", ["local", "bucket"])
def test_a_name_that_is_on_its_way_is_taken(server, bucket, url, proxy, tmp_path, kind):
    hold = threading.Event()
    proxy.fail(Fault("PUT", "/run/same/", times=-1, waits_for=hold))
    with let_go_when(tmp_path / "went on", hold):
        fit(reports_one_name_twice, tmp_path if kind == "local" else url, tmp_path, max_pending_checkpoints=3)
    run = train.Run(tmp_path / "run" if kind == "local" else server.url(bucket, "exp/run"))
    assert [each.metrics["step"] for each in run.checkpoints] == [1, 3]
    assert not any(run.verify().values())
    found = {entry.key for entry in run.checkpoints[0].checkpoint._store.list(recursive=True)}
    assert found - {".manifest.json"} == {f"{name}_{rank}" for name in ("rank", "first") for rank in (0, 1)}


def fails_once_under_a_name(config):
    rank = train.get_context().get_world_rank()
    with pytest.raises(train.ShardCollisionError):
        train.report({"step": 0}, Checkpoint(config["base"] / f"own-{rank}"), checkpoint_dir_name="again")
    report_files(1, "again", **{f"rank_{rank}": "1"}).result(LIMIT_S)


@pytest.mark.parametrize("kind", ["local", "bucket"])
def test_a_name_is_free_again_when_its_checkpoint_was_given_up(server, bucket, url, tmp_path, kind):
    for rank in (0, 1):
        (tmp_path / f"own-{rank}").mkdir()
        (tmp_path / f"own-{rank}" / "file").write_text(str(rank))
    fit(fails_once_under_a_name, tmp_path if kind == "local" else url, tmp_path)
    run = train.Run(tmp_path / "run" if kind == "local" else server.url(bucket, "exp/run"))
    assert [each.checkpoint.path.rpartition("/")[2] for each in run.checkpoints] == ["again"]
    assert not any(run.verify().values())


def test_nothing_of_anothers_is_removed_where_a_name_proves_to_be_taken(server, bucket, url, tmp_path):
    store = open_store(server.url(bucket, "exp/run"))
    store.write("mine/notes", b"of the user")

    def loop(config):
        assert isinstance(report_files(1, "mine", model="1").exception(LIMIT_S), train.CheckpointExistsError)
        with pytest.raises(train.CheckpointExistsError, match=r"report 1 could not be stored.*'mine'"):
            train.report({})

    fit(loop, url, tmp_path, workers=1)
    assert [entry.key for entry in store.list("mine", recursive=True)] == ["mine/notes"]
    assert store.read("mine/notes") == b"of the user"
