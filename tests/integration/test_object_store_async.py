"""Asynchronous checkpoints on their way to a bucket: what was handed over arrives, whatever becomes of who handed it over."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import psutil
import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from holdfast.persistence import layout
from holdfast.stores import open_store
from support.s3_proxy import Fault, answer, running_proxy
from support.s3_server import KEYS, running_server

ASYNC, SYNC = CheckpointUploadMode.ASYNC, CheckpointUploadMode.SYNC
LIMIT_S = 60


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def proxy(server, tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    # Temporary directories of its own, so that what is left behind is seen.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    # The function travels by value: this module cannot be imported by a worker.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with running_proxy(server.port) as proxy:
        yield proxy
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def bucket(server, proxy):
    return server.make_bucket()


@pytest.fixture
def url(server, proxy, bucket):
    return server.url(bucket, "exp", port=proxy.port)


@pytest.fixture
def run(server, bucket):
    """The run, read past the proxy."""
    return open_store(server.url(bucket, "exp/run"))


def fit(function, url, base, *, workers=2, failures=0, config=None, **options):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": base, **(config or {})},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name="run",
            storage_path=url,
            failure_config=FailureConfig(max_failures=failures),
            **{"progress": "quiet", **options},
        ),
    ).fit()


def wait_until(condition):
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


@contextlib.contextmanager
def beside(function, *arguments):
    """Does something while the run goes on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function, *arguments)
        yield
        future.result(LIMIT_S)


def is_dead(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def open_gate_when_dead(base, ranks):
    """Lets the uploads go on once none of these workers is there any more."""
    pids = [base / f"pid-{rank}" for rank in ranks]
    wait_until(lambda: all(pid.exists() and pid.read_text() for pid in pids))
    wait_until(lambda: all(is_dead(int(pid.read_text())) for pid in pids))
    (base / "gate").touch()


def rank_of():
    return train.get_context().get_world_rank()


def write_pid(base):
    (base / "new").mkdir(exist_ok=True)
    mine = base / "new" / f"{rank_of()}"
    mine.write_text(str(os.getpid()))
    mine.rename(base / f"pid-{rank_of()}")


def write(directory, step, num_files=1):
    for number in range(num_files):
        Path(directory, f"rank-{rank_of()}-{number}").write_text(f"step {step}")


def report_step(step, mode=ASYNC, num_files=1):
    with tempfile.TemporaryDirectory() as directory:
        write(directory, step, num_files)
        return train.report({"step": step}, Checkpoint.from_directory(directory), checkpoint_upload_mode=mode)


def read_all(checkpoint):
    with checkpoint.as_directory() as directory:
        return {path.name: path.read_text() for path in Path(directory).iterdir() if not path.name.startswith(".")}


def steps_of(run):
    """What a reader of the run sees, each compared with its manifest."""
    found = train.Run(run.url)
    assert not any(found.verify().values())
    return [each.metrics["step"] for each in found.checkpoints]


def names_in(run):
    """The checkpoints of which anything lies in the bucket."""
    return sorted({entry.key.split("/")[0] for entry in run.list(recursive=True)} - {layout.PRIVATE})


def open_files():
    """What this process has open that is no socket or pipe."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(link for link in links if link.startswith("/"))


def dies_after_two_reports(config):
    base = config["base"]
    if train.get_checkpoint() is not None:
        return read_all(train.get_checkpoint())
    write_pid(base)
    report_step(1)
    with tempfile.TemporaryDirectory() as directory:
        write(directory, 2)
        pending = train.report({"step": 2}, Checkpoint.from_directory(directory), checkpoint_upload_mode=ASYNC)
        if config["how"] == "SIGKILL" and rank_of() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    assert not pending.done()
    (base / f"reported-{rank_of()}").touch()
    if rank_of() == 1:
        if config["how"] == "exit":
            os._exit(0)
        raise RuntimeError("right after the report")
    time.sleep(LIMIT_S)
    return None


@pytest.mark.parametrize("how", ["raise", "exit", "SIGKILL"])
def test_what_was_handed_over_is_committed_after_all_workers_are_gone(url, proxy, run, tmp_path, how):
    proxy.fail(Fault("PUT", contains="/run/checkpoint_", times=-1, waits_for=tmp_path / "gate"))
    with beside(open_gate_when_dead, tmp_path, (0, 1)):
        result = fit(
            dies_after_two_reports, url, tmp_path, failures=1, config={"how": how}, max_pending_checkpoints=2
        )
    assert result.return_value == {"rank-0-0": "step 2", "rank-1-0": "step 2"}
    assert steps_of(run) == [1, 2]
    # Also of the directory whose owner was killed before it could remove it.
    assert [path for path in (tmp_path / "tmp").rglob("*") if "rank-" in path.name] == []


def test_what_was_handed_over_is_committed_though_the_run_fails_and_the_next_one_begins_there(url, proxy, run, tmp_path):
    proxy.fail(Fault("PUT", contains="/run/checkpoint_", times=-1, waits_for=tmp_path / "gate"))
    with beside(open_gate_when_dead, tmp_path, (0, 1)):
        with pytest.raises(train.WorkerGroupError, match="right after the report"):
            fit(dies_after_two_reports, url, tmp_path, config={"how": "raise"}, max_pending_checkpoints=2)
    assert steps_of(run) == [1, 2]
    again = fit(dies_after_two_reports, url, tmp_path)
    assert again.return_value == {"rank-0-0": "step 2", "rank-1-0": "step 2"}


def die_at_batch(number, how):
    """Kills this worker in the place of the `number`-th message with open files, of two each."""
    from holdfast.worker import handover

    send = handover._send
    left = [number]

    def counted(connection, message, descriptors):
        if not left[0]:
            if how == "torn":
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                connection.sendmsg([handover._frame(message)[:5]], rights)
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        send(connection, message, descriptors)

    handover._PER_MESSAGE = 2
    handover._send = counted


def dies_while_handing_over(config):
    if train.get_checkpoint() is not None:
        found = read_all(train.get_checkpoint())
        report_step(3)
        return found
    report_step(1, SYNC, num_files=6)
    write_pid(config["base"])
    if rank_of() == 1:
        die_at_batch(config["at"], config["how"])
    report_step(2, num_files=6)
    if rank_of() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LIMIT_S)
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
@pytest.mark.parametrize(
    ("at", "how"), [(0, "whole"), (1, "whole"), (2, "whole"), (0, "torn"), (1, "torn"), (2, "torn"), (3, "whole")]
)
def test_a_worker_killed_at_any_step_of_the_handing_over(url, proxy, run, tmp_path, at, how):
    fit(lambda config: None, url, tmp_path, workers=1)  # the zygote is there from now on
    before = open_files()
    proxy.fail(Fault("PUT", contains="/run/checkpoint_000002", times=-1, waits_for=tmp_path / "gate"))
    with beside(open_gate_when_dead, tmp_path, (1,)):
        result = fit(dies_while_handing_over, url, tmp_path, failures=1, config={"at": at, "how": how})
    arrived = 2 if at == 3 else 1
    names = {f"rank-{rank}-{number}" for rank in (0, 1) for number in range(6)}
    assert result.return_value == dict.fromkeys(names, f"step {arrived}")
    assert steps_of(run) == [1, 2, 3][:arrived] + [3]
    assert names_in(run) == [each.checkpoint.path.rpartition("/")[2] for each in train.Run(run.url).checkpoints]
    assert open_files() == before


def changes_a_file(config):
    base = config["base"]
    report_step(1, SYNC)
    if rank_of() == 0:
        (base / "own").mkdir()
        (base / "own" / "weights.pt").write_bytes(b"a" * config["size_bytes"])
        pending = train.report({"step": 2}, Checkpoint.from_directory(base / "own"), checkpoint_upload_mode=ASYNC)
        wait_until((base / "uploading").exists)
        with open(base / "own" / "weights.pt", "r+b") as file:
            file.seek(config["at_byte"])
            file.write(b"b")
        (base / "gate").touch()
        assert isinstance(pending.exception(LIMIT_S), train.ShardModifiedError)
    else:
        report_step(2)
    train.collective.barrier()
    with pytest.raises(train.ShardModifiedError, match=r"report 2 could not be stored.*weights\.pt"):
        train.report({"step": 3})
    report_step(4).result(LIMIT_S)
    return train.get_checkpoint().path if train.get_checkpoint() else None


@pytest.mark.parametrize(
    ("size_bytes", "at_byte"), [(1000, 0), (20 << 20, 0), (20 << 20, (20 << 20) - 1)], ids=["whole", "begin", "end"]
)
def test_a_file_changed_while_it_goes_up_fails_that_checkpoint_by_name(
    server, bucket, url, proxy, run, tmp_path, size_bytes, at_byte
):
    proxy.fail(Fault("PUT", contains="/weights.pt", times=-1, waits_for=tmp_path / "gate"))

    def tell():
        wait_until(lambda: proxy.count("PUT", "/weights.pt"))
        (tmp_path / "uploading").touch()

    with beside(tell):
        fit(changes_a_file, url, tmp_path, config={"size_bytes": size_bytes, "at_byte": at_byte})
    assert steps_of(run) == [1, 4]
    assert names_in(run) == ["checkpoint_000001", "checkpoint_000004"]
    assert server.unfinished_uploads(bucket) == 0


def refused(config):
    report_step(1, SYNC, num_files=3)
    if config["mode"] is SYNC:
        with pytest.raises(train.StorageAccessError, match="rank-1-1"):
            report_step(2, SYNC, num_files=3)
    else:
        pending = report_step(2, num_files=3)
        assert isinstance(pending.exception(LIMIT_S), train.StorageAccessError)
        train.collective.barrier()
    if config["raises"]:
        with pytest.raises(train.StorageAccessError, match=r"report 2 could not be stored.*rank-1-1"):
            report_step(3)
        return
    report_step(3, num_files=3).result(LIMIT_S)


@pytest.fixture
def _refuses_the_second(proxy):
    proxy.fail(Fault("PUT", contains="/run/checkpoint_000002/rank-1-1", times=-1, answers=answer(403, "ExpiredToken")))


@pytest.mark.usefixtures("_refuses_the_second")
@pytest.mark.parametrize(
    ("mode", "raises", "handling"), [(SYNC, False, "raise"), (ASYNC, True, "raise"), (ASYNC, False, "warn")]
)
def test_an_upload_that_is_refused_is_told_of_and_leaves_nothing(
    url, run, tmp_path, capfd, mode, raises, handling
):
    fit(refused, url, tmp_path, config={"mode": mode, "raises": raises}, on_upload_error=handling, progress="plain")
    assert steps_of(run) == ([1] if raises else [1, 3])
    assert names_in(run) == [f"checkpoint_{step:06}" for step in steps_of(run)]
    if handling == "warn":
        assert "rank-1-1" in capfd.readouterr().err


def last_is_refused(config):
    if train.get_checkpoint() is None:
        report_step(1, SYNC, num_files=3)
        report_step(2, num_files=3)
        return None
    return read_all(train.get_checkpoint())["rank-1-1"]


@pytest.mark.usefixtures("_refuses_the_second")
def test_a_last_upload_that_is_refused_fails_the_run_unless_it_may_be_a_warning(url, run, tmp_path):
    with pytest.raises(train.WorkerGroupError) as caught:
        fit(last_is_refused, url, tmp_path)
    (failure,) = caught.value.worker_failures.values()
    assert isinstance(failure, train.StorageAccessError)
    assert "rank-1-1" in str(failure)
    assert names_in(run) == ["checkpoint_000001"]
    # With an attempt left it goes on from the checkpoint before.
    assert fit(last_is_refused, url, tmp_path).return_value == "step 1"
    other = url.replace("/exp?", "/other?")
    assert fit(last_is_refused, other, tmp_path, on_upload_error="warn").return_value is None


SCRIPT = """
import sys, tempfile, time
from pathlib import Path
import holdfast as train
def loop(config):
    for step in (1, 2):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, f"rank-{train.get_context().get_world_rank()}-0").write_text(f"step {step}")
            train.report({"step": step}, train.Checkpoint(directory), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
    print("reported", flush=True)
    time.sleep(600)
try:
    train.DataParallelTrainer(
        loop,
        scaling_config=train.ScalingConfig(num_workers=int(sys.argv[2])),
        run_config=train.RunConfig(
            name="run", storage_path=sys.argv[1], stop_grace_s=float(sys.argv[3]), max_pending_checkpoints=2, progress="plain"
        ),
    ).fit()
except train.TrainingInterrupted as error:
    print("interrupted", error.result.checkpoint and error.result.checkpoint.path.rpartition("/")[2], flush=True)
"""
