"""Asynchronous reports are admitted while their files are looked at: whatever happens between the two, nothing that returned is lost."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

import holdfast as train
import holdfast.stores.local as local_store
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, RunConfig, ScalingConfig
from holdfast.worker import protocol
from holdfast.worker.channel import Channel
from support.drivers import Driver
from support.waiting import LIMIT_S, await_file

ASYNC, SYNC = CheckpointUploadMode.ASYNC, CheckpointUploadMode.SYNC


def run(function, base, workers=1, **options):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": str(base)},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="run", storage_path=str(base), **{"progress": "quiet", **options}),
    ).fit()


def report_step(step, mode=ASYNC, name=None):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, f"rank-{train.get_context().get_world_rank()}").write_text(f"step {step}")
        return train.report({"step": step}, Checkpoint(directory), name, checkpoint_upload_mode=mode)


def steps_kept(base):
    found = train.Run(base / "run")
    assert not any(found.verify().values())
    return [each.metrics["step"] for each in found.checkpoints]


def before_admitted_reports(act):
    """Calls `act` once a report of this worker was admitted, and before the driver hears of it."""
    send = Channel.send

    def sends(self, message):
        if isinstance(message, protocol.ReportCall) and message.admitted:
            act()
        send(self, message)

    Channel.send = sends


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_between_admission_and_report_has_not_reported(tmp_path, workers):
    def loop(config):
        if train.get_checkpoint() is None:
            report_step(1).result(LIMIT_S)
            if train.get_context().get_world_rank() == 0:
                before_admitted_reports(lambda: os.kill(os.getpid(), signal.SIGKILL))
            report_step(2)
            time.sleep(LIMIT_S)
        train.report({"resumed": train.get_checkpoint().get_metadata() is not None})
        return train.get_checkpoint().path

    result = run(loop, tmp_path, workers, failure_config=train.FailureConfig(max_failures=1))
    assert result.return_value.endswith("checkpoint_000001")
    assert steps_kept(tmp_path) == [1]


def test_an_error_of_the_directory_after_the_admission_uses_no_report_up(tmp_path):
    def loop(config):
        for _ in range(3):
            with pytest.raises(train.CheckpointSourceError, match="does not exist"):
                train.report({}, Checkpoint(config["base"] + "/nothing"), checkpoint_upload_mode=ASYNC)
        train.collective.barrier()
        return report_step(1).result(LIMIT_S).path

    assert run(loop, tmp_path, workers=2).return_value.endswith("checkpoint_000001")
    assert [line["metrics"] for line in train.Run(tmp_path / "run").reports()] == [{"step": 1}]


def test_a_failure_that_comes_after_the_admission_is_told_at_the_next_report(tmp_path, monkeypatch):
    copy = local_store.copy_bytes

    def gated(*arguments):
        (tmp_path / "being-stored").touch()
        await_file(tmp_path / "gate")
        copy(*arguments)

    monkeypatch.setattr(local_store, "copy_bytes", gated)

    def loop(config):
        weights = Path(config["base"], "weights", "w.pt")
        weights.parent.mkdir()
        weights.write_text("one")
        first = train.report({"step": 1}, Checkpoint(weights.parent), checkpoint_upload_mode=ASYNC)
        await_file(Path(config["base"], "being-stored"))
        weights.write_text("other")

        def fail():
            Path(config["base"], "gate").touch()
            assert isinstance(first.exception(LIMIT_S), train.ShardModifiedError)

        before_admitted_reports(fail)
        # It has returned, so it is stored, whatever became of the one before.
        report_step(2).result(LIMIT_S)
        with pytest.raises(train.ShardModifiedError, match="report 1 could not be stored"):
            train.report({"step": 3})

    run(loop, tmp_path)
    assert steps_kept(tmp_path) == [2]


def test_what_became_of_a_rank_meanwhile_is_told_to_a_report_that_was_admitted(tmp_path):
    def loop(config):
        other = Path(config["base"], "returned")
        if train.get_context().get_world_rank() == 1:
            await_file(Path(config["base"], "admitted"))
            other.touch()
            return

        def wait():
            Path(config["base"], "admitted").touch()
            await_file(other)
            time.sleep(0.3)  # its last word is on its way; should it be late, all is as if it had come after the report

        before_admitted_reports(wait)
        assert isinstance(report_step(1).exception(LIMIT_S), train.UnevenCallsError)
        train.report({})

    with pytest.raises(train.WorkerGroupError) as caught:
        run(loop, tmp_path, workers=2)
    assert isinstance(caught.value.worker_failures[0], train.UnevenCallsError)


def test_a_name_that_is_taken_is_an_error_of_the_call(tmp_path):
    def loop(config):
        report_step(1, name="best").result(LIMIT_S)
        with pytest.raises(train.CheckpointExistsError, match="best"):
            report_step(2, name="best")
        report_step(3).result(LIMIT_S)

    run(loop, tmp_path)
    assert steps_kept(tmp_path) == [1, 3]


def test_the_latest_checkpoint_stays_the_latest_after_a_synchronous_one(tmp_path):
    def loop(config):
        report_step(1).result(LIMIT_S)
        train.report({"step": 2})
        assert train.get_checkpoint().path.endswith("checkpoint_000001")
        report_step(3, SYNC)
        for step in (4, 5):
            train.report({"step": step})
            assert train.get_checkpoint().path.endswith("checkpoint_000003")

    run(loop, tmp_path, workers=2)


STOPPED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from integration.test_async_admission import before_admitted_reports, report_step, run

def loop(config):
    report_step(1).result()
    def stop():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interrupt would end it before it has returned
        os.kill(int(os.environ["driver"]), signal.SIGINT)
        time.sleep(1)  # should the driver not have begun to stop by then, the report is one before it
    before_admitted_reports(stop)
    report_step(2)

os.environ["driver"] = str(os.getpid())
run(loop, Path(sys.argv[1]))
"""


def test_a_report_that_was_admitted_before_ctrl_c_is_stored(tmp_path):
    with Driver(STOPPED.format(tests=str(Path(__file__).parents[1])), tmp_path) as driver:
        driver.communicate(timeout=LIMIT_S)
        assert driver.returncode != 0
    assert steps_kept(tmp_path) == [1, 2]
