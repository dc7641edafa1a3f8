"""Asynchronous checkpoints that cannot be stored: which report it was, who is told, and that no other one suffers."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

import holdfast as train
import holdfast.stores.local as local_store
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, RunConfig, ScalingConfig
from support.waiting import await_file

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


def report_step(step, **options):
    """Reports a file of this rank; the directory is gone when it returns."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, f"rank-{train.get_context().get_world_rank()}").write_text(f"step {step}")
        Path(directory, "sub").mkdir()
        Path(directory, "sub", f"{train.get_context().get_world_rank()}.txt").write_text("x")
        return train.report(
            {"step": step}, Checkpoint.from_directory(directory), **{"checkpoint_upload_mode": ASYNC, **options}
        )


# Before Linux 6.13 the times of files moved by ticks of some milliseconds; what is written within one shows no other time.
TICK_S = 0.02


def modify_after_report(step):
    directory = Path(tempfile.mkdtemp())
    (directory / "weights.pt").write_bytes(b"a" * 1000)
    pending = train.report(
        {"step": step},
        Checkpoint(directory),
        checkpoint_upload_mode=ASYNC,
        delete_local_checkpoint_after_upload=False,
    )
    train.collective.barrier()  # else a slower rank's own report may learn of it first
    time.sleep(TICK_S)
    with open(directory / "weights.pt", "r+b") as file:
        file.write(b"b")
    return pending


def test_a_file_modified_after_the_report_fails_that_checkpoint_by_name(tmp_path, gate):
    def loop(config):
        pending = modify_after_report(1)
        (config["base"] / "gate").touch()
        error = pending.exception(30)
        assert isinstance(error, train.ShardModifiedError)
        with pytest.raises(train.ShardModifiedError, match=r"report 1 could not be stored.*weights\.pt"):
            train.report({"step": 2})  # on every rank alike
        report_step(3).result(30)

    run(loop, tmp_path, workers=2)
    assert [each.metrics["step"] for each in train.Run(tmp_path / "run").checkpoints] == [3]
    assert not [name for name in os.listdir(tmp_path / "run") if "partial" in name]


def test_an_upload_error_may_be_only_a_warning(tmp_path, gate, capfd):
    def loop(config):
        modify_after_report(1)
        (config["base"] / "gate").touch()
        report_step(2).result(30)

    run(loop, tmp_path, workers=1, on_upload_error="warn", progress="plain")
    assert "weights.pt" in capfd.readouterr().err
    assert [each.metrics["step"] for each in train.Run(tmp_path / "run").checkpoints] == [2]


def test_the_last_checkpoint_that_cannot_be_stored_fails_the_attempt(tmp_path, gate):
    def loop(config):
        if train.get_checkpoint() is None:
            report_step(1, checkpoint_upload_mode=CheckpointUploadMode.SYNC)
            (config["base"] / "gate").unlink()
            modify_after_report(2)
            (config["base"] / "gate").touch()
        return train.get_checkpoint().path

    gate.touch()
    with pytest.raises(train.WorkerGroupError) as caught:
        run(loop, tmp_path, workers=1)
    assert isinstance(caught.value.worker_failures[0], train.ShardModifiedError)
    # With an attempt left it goes on from the checkpoint before.
    assert run(loop, tmp_path, workers=1).return_value.endswith("checkpoint_000001")


def test_a_rank_that_returns_without_the_report_fails_it(tmp_path):
    def loop():
        if train.get_context().get_world_rank() == 0:
            pending = report_step(1)
            assert isinstance(pending.exception(30), train.UnevenCallsError)

    with pytest.raises(train.WorkerGroupError) as caught:
        run(loop, tmp_path)
    assert isinstance(caught.value.worker_failures[0], train.UnevenCallsError)
    assert kept(tmp_path) == []


def test_the_same_name_with_other_bytes_fails_the_checkpoint(tmp_path):
    def loop():
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model").write_text(str(train.get_context().get_world_rank()))
            pending = train.report({}, Checkpoint(directory), checkpoint_upload_mode=ASYNC)
        error = pending.exception(30)
        assert isinstance(error, train.ShardCollisionError)
        assert "model" in str(error)
        with pytest.raises(train.ShardCollisionError):
            train.report({})

    run(loop, tmp_path)


def outcomes_of_one_that_has_none(config):
    """Rank 1 comes late, and hands over nothing: the outcome comes right behind its answer."""
    rank = train.get_context().get_world_rank()
    for number in range(30):
        time.sleep(0.01 * rank)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "f").write_text("x")
            checkpoint = Checkpoint(directory) if rank == 0 and config["files"] else None
            pending = train.report({"n": number}, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            assert (pending.result(10) is not None) == config["files"]


@pytest.mark.parametrize("files", [True, False])
def test_no_outcome_is_lost_where_a_rank_hands_over_nothing(tmp_path, files):
    DataParallelTrainer(
        outcomes_of_one_that_has_none,
        train_loop_config={"files": files},
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(name="run", storage_path=str(tmp_path), progress="quiet"),
    ).fit()


def test_a_failure_that_is_only_warned_of_is_no_error_of_a_rank_that_comes_late(gate, tmp_path):
    def loop():
        if train.get_context().get_world_rank() == 0:
            source = tmp_path / "source"
            source.mkdir()
            (source / "f").write_bytes(b"x" * 1000)
            train.report({}, Checkpoint(source), checkpoint_upload_mode=ASYNC)
            (source / "f").write_bytes(b"y" * 2000)
            gate.touch()
            return
        await_file(gate)
        time.sleep(1)
        pending = train.report({}, checkpoint_upload_mode=ASYNC)
        with pytest.raises(train.ShardModifiedError):
            pending.result(10)

    run(loop, tmp_path, workers=2, on_upload_error="warn")
