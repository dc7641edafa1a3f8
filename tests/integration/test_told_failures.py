"""What a person reads of a failure: all of it once, and elsewhere a line."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

import holdfast as train
from support.drivers import Driver
from support.waiting import LIMIT_S, await_file

DRIVER = """
import os, signal, sys, tempfile
from pathlib import Path
import holdfast as train
how, storage, max_failures, catches = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
def helper():
    raise ValueError("no such " + "luck\\nwith this")
def loop(config):
    rank = train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "file").write_text("x")
        train.report({}, train.Checkpoint(directory))
        if how == "raises" and rank == 1:
            helper()
        if how == "killed" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "refused":
            train.report({"no such " + "luck": {1}})
        if how == "upload":
            with tempfile.TemporaryDirectory() as other:
                Path(other, "no such " + "luck").write_text(str(rank))
                train.report({}, train.Checkpoint(other), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
        train.report({})
        train.report({})
trainer = train.DataParallelTrainer(
    loop,
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(
        name="run", storage_path=storage, progress="plain", failure_config=train.FailureConfig(max_failures=max_failures)
    ),
)
try:
    trainer.fit()
except train.TrainingFailedError:
    if not catches:
        raise
"""
WORDS = {"killed": "rank 1 was killed by SIGKILL"}


def _told(*arguments: object) -> str:
    with Driver(DRIVER, *arguments) as driver:
        driver.communicate(timeout=LIMIT_S)
        return driver.said()


@pytest.mark.parametrize("how", ["raises", "killed", "refused", "upload"])
def test_a_failure_is_told_by_a_line_and_in_full_by_the_error(tmp_path: Path, how: str) -> None:
    said = _told(how, tmp_path, 0)
    lines = [line for line in said.splitlines() if WORDS.get(how, "no such luck") in line]
    # An upload's failure is told of when it happens, too.
    warnings = [line for line in lines if "] warning: " in line]
    assert len(warnings) == (how == "upload")
    attempt, cause, last = [line for line in lines if line not in warnings]
    assert attempt.startswith("[holdfast run] attempt 1 failed: rank")
    assert not cause.startswith((" ", "["))
    assert last.startswith("holdfast.errors.WorkerGroupError: run 'run' failed after 1 attempt")
    assert "The latest checkpoint is checkpoint_000001" in last
    assert str(tmp_path / "run" / ".holdfast" / "logs") in last
    assert f"[holdfast run] ended: failed after 1 attempt; {tmp_path / 'run'}" in said.splitlines()
    if how != "upload":  # its report may have been the last one
        assert ("on rank" in said) == (how != "killed")


def test_a_failure_that_the_script_catches_is_told_by_a_line(tmp_path: Path) -> None:
    said = _told("raises", tmp_path, 0, "catches")
    (told,) = [line for line in said.splitlines() if "no such luck" in line]
    assert told == "[holdfast run] attempt 1 failed: rank 1: ValueError: no such luck"
    assert "Traceback" not in said


def test_a_failure_that_nobody_is_raised_is_told_in_full_and_kept(tmp_path: Path) -> None:
    said = _told("raises", tmp_path, 1, "catches")
    first, _, second = said.partition("attempt 1 failed and is restarted: rank 1: ValueError: no such luck\n")
    assert [line for line in first.splitlines() if line.startswith("[rank 1] ")][:4] == [
        "[rank 1] ValueError: no such luck",
        "[rank 1] with this",
        "[rank 1] on rank 1:",
        "[rank 1] Traceback (most recent call last):",
    ]
    assert "in helper" in first
    assert "Traceback" not in second
    for attempt in (1, 2):
        log = tmp_path / "run" / ".holdfast" / "logs" / f"attempt_{attempt:06d}" / "rank_00001.log"
        assert log.read_text().startswith("ValueError: no such luck\nwith this\non rank 1:\nTraceback")
        assert "in helper" in log.read_text()


def test_a_worker_that_is_killed_needs_no_more_than_a_line(tmp_path: Path) -> None:
    said = _told("killed", tmp_path, 1, "catches")
    told = [line for line in said.splitlines() if WORDS["killed"] in line]
    assert len(told) == 2
    assert told[0].startswith("[holdfast run] attempt 1 failed and is restarted: ")


def test_a_rank_that_had_to_be_killed_after_another_failed_is_not_the_cause(tmp_path: Path) -> None:
    def loop() -> None:
        if train.get_context().get_world_rank() == 1:
            # As in a library that looks for no signal: only SIGKILL ends it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            (tmp_path / "deaf").touch()
            time.sleep(600)
        await_file(tmp_path / "deaf")
        raise ValueError("the learning rate is negative")

    with pytest.raises(train.WorkerGroupError, match="rank 0: ValueError: the learning rate is negative") as caught:
        train.DataParallelTrainer(
            loop,
            scaling_config=train.ScalingConfig(num_workers=2),
            run_config=train.RunConfig(name="run", storage_path=tmp_path, progress="quiet"),
        ).fit()
    assert set(caught.value.worker_failures) == {0}
    assert isinstance(caught.value.__cause__, ValueError)
