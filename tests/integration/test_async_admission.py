"""Asynchronous reports are admitted while their files are looked at: whatever happens between the two, nothing that returned is lost."""

from __future__ import annotations

import contextlib
import os
import random
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


def limit_the_wait(kind, limit_s):
    """Has a signal come so long after this worker's next message of a kind was sent: in the wait for its answer, where there is one."""
    send = Channel.send

    def sends(self, message):
        send(self, message)
        if isinstance(message, kind):
            Channel.send = send
            signal.setitimer(signal.ITIMER_REAL, limit_s)

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


def test_a_default_name_that_is_taken_is_an_error_of_the_call_too(tmp_path):
    def loop(config):
        report_step(1, name="checkpoint_000002").result(LIMIT_S)
        with pytest.raises(train.CheckpointExistsError, match="checkpoint_000002"):
            report_step(2)
        report_step(3).result(LIMIT_S)

    run(loop, tmp_path, on_upload_error="warn")
    assert steps_kept(tmp_path) == [1, 3]


def test_no_rank_throws_away_what_has_returned_on_another(tmp_path, monkeypatch):
    """Report 1 fails when rank 0 is admitted to report 2 and rank 1 has not asked; and rank 1 comes first."""
    copy = local_store.copy_bytes

    def gated(*arguments):
        (tmp_path / "being-stored").touch()
        await_file(tmp_path / "gate")
        copy(*arguments)

    monkeypatch.setattr(local_store, "copy_bytes", gated)

    def loop(config):
        base, rank = Path(config["base"]), train.get_context().get_world_rank()
        weights = base / "weights" / "w.pt"
        if rank == 0:
            weights.parent.mkdir()
            weights.write_text("one")
        brings = Checkpoint(weights.parent) if rank == 0 else None
        first = train.report({"step": 1}, brings, checkpoint_upload_mode=ASYNC)
        (base / f"reported-{rank}").touch()
        if rank == 0:
            await_file(base / "being-stored")
            await_file(base / "reported-1")
            weights.write_text("other")

            def fail():
                (base / "gate").touch()
                assert isinstance(first.exception(LIMIT_S), train.ShardModifiedError)
                (base / "failed").touch()
                await_file(base / "comes")
                time.sleep(0.3)  # should rank 1 be later, it does not come first: then there is less to show

            before_admitted_reports(fail)
        else:
            await_file(base / "failed")
            (base / "comes").touch()
        report_step(2).result(LIMIT_S)
        with pytest.raises(train.ShardModifiedError, match="report 1 could not be stored"):
            train.report({"step": 3})
        train.report({"step": 4})  # it was told once

    run(loop, tmp_path, workers=2)
    assert steps_kept(tmp_path) == [2]


class LateError(Exception):
    """What a time limit of the user's raises."""


def raise_late(*_):
    raise LateError


def test_a_report_after_a_call_that_a_time_limit_ended_gets_its_own_answer(tmp_path):
    def loop(config):
        if train.get_context().get_world_rank() == 0:
            signal.signal(signal.SIGALRM, raise_late)
            limit_the_wait(protocol.BarrierCall, 0.2)
            with pytest.raises(LateError):
                train.collective.barrier()
            Path(config["base"], "ended").touch()
        else:
            await_file(Path(config["base"], "ended"))
            train.collective.barrier()
        first, second = report_step(1), report_step(2)
        assert first.result(LIMIT_S).path.endswith("checkpoint_000001")
        assert second.result(LIMIT_S).path.endswith("checkpoint_000002")

    run(loop, tmp_path, workers=2)
    assert steps_kept(tmp_path) == [1, 2]


def test_a_report_that_an_interrupt_ends_before_its_files_are_sent_holds_nothing_up(tmp_path):
    def loop(config):
        send, done = Channel.send, []

        def sends(self, message):
            send(self, message)
            if isinstance(message, protocol.ReportCall) and message.admitted and not done:
                done.append(message)
                raise LateError

        Channel.send = sends
        with pytest.raises(LateError):
            report_step(1)
        train.get_all_reported_checkpoints(train.CheckpointConsistencyMode.COMMITTED)  # waits for what becomes of it
        with pytest.raises(train.HoldfastError, match="report 1 could not be stored: the hand-over"):
            report_step(2)
        assert report_step(3).result(LIMIT_S).path.endswith("checkpoint_000003")

    run(loop, tmp_path)
    assert steps_kept(tmp_path) == [3]


def test_interrupts_at_any_moment_leave_the_next_calls_as_they_should_be(tmp_path):
    def loop(config):
        limited = []

        def late(*_):
            if limited:  # another thread may be the one that the signal interrupts, and late itself
                raise LateError

        signal.signal(signal.SIGALRM, late)
        source = Path(config["base"], "source")
        source.mkdir()
        for name in "abc":
            (source / name).write_text(name)
        moments = random.Random(0)
        for step in range(100):
            with contextlib.suppress(LateError):
                try:
                    limited.append(step)
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 2e-3))
                    train.report({}, Checkpoint(source), checkpoint_upload_mode=ASYNC, **KEPT)
                finally:
                    limited.clear()
                    signal.setitimer(signal.ITIMER_REAL, 0)
            train.collective.barrier()
            train.report({"step": step}, Checkpoint(source), checkpoint_upload_mode=ASYNC, **KEPT).result(LIMIT_S)

    run(loop, tmp_path, on_upload_error="warn", checkpoint_config=train.CheckpointConfig(num_to_keep=1))
    assert steps_kept(tmp_path) == [99]


def test_a_rank_that_holds_the_others_up_is_named_although_none_waits_for_it_in_a_call(tmp_path):
    def loop(config):
        if train.get_context().get_world_rank() == 1:
            report_step(1)
            await_file(Path(config["base"], "never"))
        for step in range(1, 5):
            report_step(step)

    with pytest.raises(train.WorkerGroupError) as caught:
        run(loop, tmp_path, workers=2, max_pending_checkpoints=1, late_rank_warning_s=0.5, late_rank_timeout_s=1)
    assert "cannot be completed without rank 1" in str(caught.value.worker_failures[0])


def test_a_report_that_an_interrupt_ends_while_it_waits_for_room_does_not_change_places(tmp_path):
    def loop(config):
        base, rank = Path(config["base"]), train.get_context().get_world_rank()
        if rank == 1:
            await_file(base / "interrupted")
        for step in range(1, 5):
            if rank == 0 and step == 3:
                signal.signal(signal.SIGALRM, raise_late)
                limit_the_wait(protocol.ReportCall, 0.5)
                with pytest.raises(LateError):
                    report_step(step)
                (base / "interrupted").touch()
            else:
                with contextlib.suppress(train.HoldfastError):  # of report 3, which was never handed over
                    report_step(step)

    run(loop, tmp_path, workers=2, max_pending_checkpoints=1, on_upload_error="warn")
    for each in train.Run(tmp_path / "run").checkpoints:
        texts = {Path(each.checkpoint.path, f"rank-{rank}").read_text() for rank in (0, 1)}
        assert texts == {f"step {each.metrics['step']}"}


KEPT = {"delete_local_checkpoint_after_upload": False}


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
