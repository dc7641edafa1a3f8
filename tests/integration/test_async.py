"""Asynchronous checkpoints: training does not wait, and what was handed over is safe."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import holdfast as train
import holdfast.stores.local as local_store
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, RunConfig, ScalingConfig
from holdfast.controller.room import Room
from support.drivers import Driver
from support.waiting import LIMIT_S, await_file

ASYNC = CheckpointUploadMode.ASYNC


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Copies into the store wait until this file exists; they run in the driver, which is this process."""
    path = tmp_path / "gate"
    copy = local_store.copy_bytes

    def gated(*arguments):
        await_file(path)
        copy(*arguments)

    monkeypatch.setattr(local_store, "copy_bytes", gated)
    return path


def run(function, tmp_path, workers=2, **options):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": tmp_path},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="run", storage_path=tmp_path, **{"progress": "quiet", **options}),
    ).fit()


def kept(tmp_path):
    return [each.checkpoint.path.rpartition("/")[2] for each in train.Run(tmp_path / "run").checkpoints]


def verified(tmp_path):
    return all(problems == [] for problems in train.Run(tmp_path / "run").verify().values())


def report_step(step, **options):
    """Reports a file of this rank; the directory is gone when it returns."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, f"rank-{train.get_context().get_world_rank()}").write_text(f"step {step}")
        Path(directory, "sub").mkdir()
        Path(directory, "sub", f"{train.get_context().get_world_rank()}.txt").write_text("x")
        return train.report(
            {"step": step}, Checkpoint.from_directory(directory), **{"checkpoint_upload_mode": ASYNC, **options}
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_report_returns_before_anything_is_stored(tmp_path, gate, workers):
    def loop(config):
        pending = report_step(1)
        assert not pending.done()
        with pytest.raises(train.WaitTimeoutError, match="still on its way"):
            pending.result(timeout_s=0.05)
        train.report({"beside": 1})  # metrics alone are not held up
        (config["base"] / "gate").touch()
        checkpoint = pending.result(timeout_s=30)
        assert pending.done()
        assert pending.exception() is None
        with checkpoint.as_directory() as directory:
            assert Path(directory, "rank-0").read_text() == "step 1"
            assert Path(directory, "sub", "0.txt").exists()
        return checkpoint.path

    result = run(loop, tmp_path, workers)
    assert result.checkpoint.path == result.return_value
    assert verified(tmp_path)
    assert [line["metrics"] for line in train.Run(tmp_path / "run").reports()] == [{"step": 1}, {"beside": 1}]


def test_a_worker_killed_right_after_its_report_loses_nothing(tmp_path, gate):
    def loop(config):
        rank, base = train.get_context().get_world_rank(), config["base"]
        if train.get_checkpoint() is None:
            report_step(1)
            (base / f"reported-{rank}").touch()
            for each in (0, 1):
                await_file(base / f"reported-{each}")
            (base / "gate").touch()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        with train.get_checkpoint().as_directory() as directory:
            return sorted(os.listdir(directory)), Path(directory, "rank-1").read_text()

    result = run(loop, tmp_path, failure_config=train.FailureConfig(max_failures=1))
    assert result.return_value == ([".manifest.json", "rank-0", "rank-1", "sub"], "step 1")


def test_a_slower_rank_may_still_complete_a_report_after_another_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.controller.attempt._PROMISE_S", LIMIT_S)

    def loop(config):
        if train.get_checkpoint() is not None:
            return "resumed"
        if train.get_context().get_world_rank() == 0:
            report_step(1)
            (config["base"] / "failing").touch()
            raise RuntimeError("right after the report")
        await_file(config["base"] / "failing")
        report_step(1)
        time.sleep(60)
        return None

    result = run(loop, tmp_path, failure_config=train.FailureConfig(max_failures=1))
    assert result.return_value == "resumed"
    assert verified(tmp_path)


def test_commits_follow_the_order_of_reports(tmp_path, monkeypatch):
    copy = local_store.copy_bytes
    later_stored = threading.Event()

    def first_is_slow(source, target, size_bytes, hasher):
        if size_bytes == 1:
            assert later_stored.wait(30)
        copy(source, target, size_bytes, hasher)
        if size_bytes == 2:
            later_stored.set()

    monkeypatch.setattr(local_store, "copy_bytes", first_is_slow)
    # With two, one is left to training, and nothing overtakes.
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    seen = []

    class Watch(train.UserCallback):
        def after_report(self, run_context, metrics, checkpoint):
            seen.append(metrics[0]["size"])

    def loop():
        pending = []
        for size in (1, 2):
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "model").write_bytes(b"x" * size)
                pending.append(train.report({"size": size}, Checkpoint(directory), checkpoint_upload_mode=ASYNC))
        pending[1].result(30)
        assert pending[0].done()

    run(loop, tmp_path, workers=1, callbacks=[Watch()])
    assert seen == [1, 2]
    found = train.Run(tmp_path / "run").checkpoints
    assert [each.metrics["size"] for each in found] == [1, 2]


def test_a_synchronous_report_comes_after_the_asynchronous_before_it(tmp_path, gate):
    def loop(config):
        pending = report_step(1)
        threading.Timer(0.2, (config["base"] / "gate").touch).start()
        report_step(2, checkpoint_upload_mode=CheckpointUploadMode.SYNC)
        assert pending.done()
        assert train.get_checkpoint().path.endswith("checkpoint_000002")

    run(loop, tmp_path)
    assert kept(tmp_path) == ["checkpoint_000001", "checkpoint_000002"]


@pytest.mark.parametrize(
    ("options", "at_once"),
    [({"max_pending_checkpoints": 0}, 1), ({}, 2), ({"max_pending_checkpoints": 9, "max_pending_bytes": 10}, 2)],
)
def test_report_waits_for_room_and_says_so(tmp_path, gate, capfd, monkeypatch, options, at_once):
    tell = Room._tell

    def told(room):
        tell(room)
        gate.touch()

    monkeypatch.setattr(Room, "_tell", told)

    def loop(config):
        rank, base = train.get_context().get_world_rank(), config["base"]
        pending = []
        for step in range(4):
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, f"{rank}").write_bytes(b"12345")
                pending.append(train.report({}, Checkpoint(directory), checkpoint_upload_mode=ASYNC))
            assert (base / "gate").exists() == (step >= at_once)
        for each in pending:
            assert each.result(30)

    run(loop, tmp_path, workers=1, progress="plain", **options)
    assert "until there is room" in capfd.readouterr().err
    assert len(kept(tmp_path)) == 4


def test_a_rank_far_behind_is_never_kept_out_by_those_ahead(tmp_path):
    def loop(config):
        base = config["base"]
        if train.get_context().get_world_rank() == 1:
            await_file(base / "ahead")
        for step in range(5):
            if train.get_context().get_world_rank() == 0 and step == 2:
                (base / "ahead").touch()
            report_step(step)

    run(loop, tmp_path)
    assert len(kept(tmp_path)) == 5
    assert verified(tmp_path)


# Before Linux 6.13 the times of files moved by ticks of some milliseconds; what is written within one shows no other time.
TICK_S = 0.02


def test_a_directory_used_again_for_the_next_checkpoint_is_left_alone(tmp_path, gate):
    def loop(config):
        directory = config["base"] / "always-here"
        for step in range(2):
            directory.mkdir(exist_ok=True)
            (directory / "new").write_text(str(step))
            os.replace(directory / "new", directory / "model")
            pending = train.report({"step": step}, Checkpoint(directory), checkpoint_upload_mode=ASYNC)
        (config["base"] / "gate").touch()
        pending.result(30)

    run(loop, tmp_path, workers=1)
    contents = []
    for each in train.Run(tmp_path / "run").checkpoints:
        with each.checkpoint.as_directory() as directory:
            contents.append(Path(directory, "model").read_text())
    assert contents == ["0", "1"]


def test_a_file_that_is_written_again_after_the_report_does_not_reach_the_checkpoint(tmp_path):
    def loop(config):
        base = config["base"]
        if train.get_context().get_world_rank() == 0:
            (base / "model").mkdir()
            (base / "model" / "weights").write_bytes(b"reported")
            pending = train.report({}, Checkpoint(str(base / "model")), checkpoint_upload_mode=ASYNC)
            time.sleep(TICK_S)
            with open(base / "model" / "weights", "wb") as file:  # as torch.save does
                file.write(b"the next")
            (base / "written").touch()
        else:
            await_file(base / "written")
            with contextlib.suppress(train.ShardModifiedError):
                train.report({}, checkpoint_upload_mode=ASYNC)
            return
        error = pending.exception(30)
        assert error is None or isinstance(error, train.ShardModifiedError)

    run(loop, tmp_path, on_upload_error="warn")
    for each in train.Run(tmp_path / "run").checkpoints:
        assert (Path(each.checkpoint.path) / "weights").read_bytes() == b"reported"


def test_the_list_of_checkpoints_waits_for_those_that_are_on_their_way(tmp_path, gate):
    def loop(config):
        report_step(1)
        with pytest.raises(train.WaitTimeoutError):
            train.get_all_reported_checkpoints(timeout_s=0.05)
        train.collective.barrier()  # a slower rank has waited for its time, too
        threading.Timer(0.1, (config["base"] / "gate").touch).start()
        found = train.get_all_reported_checkpoints(train.CheckpointConsistencyMode.COMMITTED)
        assert [each.metrics for each in found] == [{"step": 1}]

    run(loop, tmp_path)


def test_the_latest_checkpoint_is_the_same_on_every_rank_at_every_report(tmp_path):
    def loop():
        seen = []
        for step in range(30):
            report_step(step)
            latest = train.get_checkpoint()
            seen.append(latest.path if latest else None)
        mine = train.collective.broadcast_from_rank_zero(seen)
        assert mine == seen

    run(loop, tmp_path)


SCRIPT = """
import os, resource, signal, sys, tempfile
from pathlib import Path
if sys.argv[2] != "usual":
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
import holdfast as train
def loop(config):
    if train.get_checkpoint():
        return
    if sys.argv[2] == "fewer":
        own = [os.open(os.devnull, os.O_RDONLY) for _ in range(250)]
    with tempfile.TemporaryDirectory() as directory:
        for number in range(2000):
            Path(directory, f"file-{number}").write_text(str(number))
        pending = train.report({}, train.Checkpoint(directory), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
    if sys.argv[2] == "fewer":
        os.kill(os.getpid(), signal.SIGKILL)
    pending.result(60)
def descriptors():
    return len(os.listdir("/proc/self/fd"))
train.DataParallelTrainer(lambda: None, run_config=train.RunConfig(name="warm", storage_path=sys.argv[1])).fit()
before = descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
failures = train.FailureConfig(max_failures=1 if sys.argv[2] == "fewer" else 0)
train.DataParallelTrainer(loop, run_config=train.RunConfig(name="run", storage_path=sys.argv[1], failure_config=failures)).fit()
assert (descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)) == before, (descriptors(), before)
"""


@pytest.mark.parametrize(
    "limit", ["fewer", "few", "usual"]
)  # `fewer`: and the worker has opened most of them, and dies at once
def test_more_files_than_a_program_may_open_come_in_batches(tmp_path, limit):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, script, tmp_path, limit], check=True, timeout=100)
    assert len(train.Run(tmp_path / "run").latest.checkpoint.files()) == 2000
    assert verified(tmp_path)


def test_the_own_limit_of_open_files_is_what_it_was(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    run(lambda config: report_step(1).result(30) and None, tmp_path)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


STOPPED = """
import os, signal, sys, tempfile, threading, time
from pathlib import Path
import holdfast as train, holdfast.stores.local as local_store
base, opens = Path(sys.argv[1]), sys.argv[2] == "opens"
copy = local_store.copy_bytes
stopping = threading.Event()
def gated(*arguments):
    while not (opens and stopping.is_set()):
        time.sleep(0.01)
    copy(*arguments)
local_store.copy_bytes = gated
def loop(config):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "model").write_text("weights")
        train.report({}, train.Checkpoint(directory), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
    (base / "up").touch()
    time.sleep(600)
def watch():
    while not (base / "signalled").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    stopping.set()
threading.Thread(target=watch, daemon=True).start()
try:
    train.DataParallelTrainer(loop, run_config=train.RunConfig(name="run", storage_path=base, stop_grace_s=600)).fit()
except train.TrainingInterrupted as error:
    print("interrupted", error.result.checkpoint is not None, flush=True)
"""


def test_a_pending_checkpoint_is_finished_when_the_run_is_stopped(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(STOPPED)
    with Driver(script, tmp_path, "opens") as driver:
        driver.await_file(tmp_path / "up")
        driver.send_signal(signal.SIGTERM)
        (tmp_path / "signalled").touch()
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out.split()[-2:] == ["interrupted", "True"]
    assert kept(tmp_path) == ["checkpoint_000001"]
    assert verified(tmp_path)


def test_a_killed_driver_leaves_no_half_of_a_pending_checkpoint(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(STOPPED)
    with Driver(script, tmp_path, "never") as driver:
        driver.await_file(tmp_path / "up")
        driver.kill()
        driver.communicate(timeout=LIMIT_S)
    assert kept(tmp_path) == []
    assert run(lambda config: train.get_checkpoint(), tmp_path, workers=1).return_value is None
    assert not [name for name in os.listdir(tmp_path / "run") if "partial" in name]
