"""Validations that workers, drivers and signals do not wait for: each has its outcome, from the next driver if need be."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

import holdfast as train
from holdfast import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    DataParallelTrainer,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingInterrupted,
    ValidationConfig,
    ValidationTaskConfig,
    WorkerGroupError,
)
from holdfast.reported import CheckpointStatus
from support.drivers import Driver
from support.waiting import LIMIT_S, await_end, await_file, beside, wait_until


def fit(function, tmp_path, validation, *, workers=1, failures=0, kept=None, task=None, **config):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": str(tmp_path), **config},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name="run",
            storage_path=tmp_path,
            progress="quiet",
            failure_config=FailureConfig(max_failures=failures),
            checkpoint_config=kept or CheckpointConfig(),
        ),
        validation_config=ValidationConfig(validation, task) if validation is not None else None,
    ).fit()


def report(step, validation=True, mode=CheckpointUploadMode.SYNC, **metrics):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "step").write_text(str(step))
        train.report(
            {"step": step, **metrics},
            Checkpoint.from_directory(directory),
            validation=validation,
            checkpoint_upload_mode=mode,
        )


def where_this_can_be_imported():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


def step_of(checkpoint):
    with checkpoint.as_directory() as directory:
        return int(Path(directory, "step").read_text())


def test_it_goes_on_while_workers_are_restarted(tmp_path):
    def validate(checkpoint, base):
        await_file(Path(base, "go"))
        return {"val": os.getpid()}

    def loop(config):
        if train.get_checkpoint() is None:
            report(0)
            os.kill(os.getpid(), signal.SIGKILL)
        Path(config["base"], "go").touch()

    result = fit(loop, tmp_path, validate, failures=1, task=ValidationTaskConfig(fn_kwargs={"base": str(tmp_path)}))
    assert [each.status for each in train.Run(result.path).checkpoints] == [CheckpointStatus.VALIDATED]


def test_what_a_failed_run_did_not_come_to_the_next_driver_does(tmp_path):
    def validate(checkpoint, wait_s=0):
        time.sleep(wait_s)
        return {"val": step_of(checkpoint)}

    def loop(config):
        if train.get_checkpoint() is None:
            report(0, ValidationTaskConfig(fn_kwargs={"wait_s": 600}))
            report(1)
            raise RuntimeError("over")

    began = time.monotonic()
    with pytest.raises(WorkerGroupError):
        fit(loop, tmp_path, validate)
    assert time.monotonic() - began < LIMIT_S
    run = train.Run(tmp_path / "run")
    assert {each.status for each in run.checkpoints} == {CheckpointStatus.PENDING_VALIDATION}
    fit(loop, tmp_path, validate)
    assert [(each.metrics["val"], each.status) for each in run.checkpoints] == [
        (0, CheckpointStatus.VALIDATED), (1, CheckpointStatus.VALIDATED),
    ]  # fmt: skip


def test_a_killed_driver_takes_it_along_and_the_next_one_begins_it_again(tmp_path):
    script = textwrap.dedent(
        """
        import os, sys, time
        from test_validation import fit, report

        def validate(checkpoint):
            with open(os.path.join(sys.argv[1], "pids"), "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(600 if len(open(os.path.join(sys.argv[1], "pids")).readlines()) == 1 else 0)
            return {"val": 7}

        def loop(config):
            import holdfast
            if holdfast.get_checkpoint() is None:
                report(0)
                time.sleep(600)

        fit(loop, sys.argv[1], validate)
        """
    )
    environment = where_this_can_be_imported()
    pids = tmp_path / "pids"
    with Driver(script, tmp_path, env=environment) as driver:
        driver.wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), "the validation has begun")
        driver.kill()
        driver.wait()
        await_end(int(pids.read_text()))
    with Driver(script, tmp_path, env=environment) as driver:
        driver.communicate(timeout=LIMIT_S)
        assert driver.returncode == 0
    (only,) = train.Run(tmp_path / "run").checkpoints
    assert (only.metrics["val"], only.status) == (7, CheckpointStatus.VALIDATED)


def test_ctrl_c_does_not_wait_for_it(tmp_path):
    def validate(checkpoint, base):
        Path(base, "runs").touch()
        time.sleep(600)

    def loop(config):
        report(0)

    def interrupt():
        await_file(tmp_path / "runs")
        os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    with beside(interrupt), pytest.raises(TrainingInterrupted):
        fit(loop, tmp_path, validate, task=ValidationTaskConfig(fn_kwargs={"base": str(tmp_path)}))
    assert time.monotonic() - began < LIMIT_S
    (only,) = train.Run(tmp_path / "run").checkpoints
    assert only.status is CheckpointStatus.PENDING_VALIDATION


def test_the_zygote_killed_in_mid_validation_costs_a_new_beginning_not_the_outcome(tmp_path, caplog):
    def validate(checkpoint, base):
        with open(Path(base, "begun"), "a") as file:
            file.write(f"{os.getppid()}\n")
        time.sleep(600 if len(Path(base, "begun").read_text().splitlines()) == 1 else 0)
        return {"val": 1}

    def loop(config):
        report(0)

    def kill_zygote():
        begun = tmp_path / "begun"
        wait_until(lambda: "training is over" in caplog.text, "no worker is left")
        wait_until(lambda: begun.exists() and begun.read_text().endswith("\n"), "the validation has begun")
        os.kill(int(begun.read_text()), signal.SIGKILL)

    with beside(kill_zygote):
        result = fit(loop, tmp_path, validate, task=ValidationTaskConfig(fn_kwargs={"base": str(tmp_path)}))
    assert [each.status for each in train.Run(result.path).checkpoints] == [CheckpointStatus.VALIDATED]


def test_what_an_earlier_driver_left_is_verified_before_it_is_validated(tmp_path):
    def loop(config):
        if train.get_checkpoint() is None:
            report(0)
            report(1)
            raise RuntimeError("over")

    def slow(checkpoint):
        time.sleep(60)

    with pytest.raises(WorkerGroupError):
        fit(loop, tmp_path, slow)
    (tmp_path / "run" / "checkpoint_000001" / "step").write_text("7")
    result = fit(loop, tmp_path, lambda checkpoint: {"val": step_of(checkpoint)})
    found = [(each.metrics.get("val"), each.status) for each in train.Run(result.path).checkpoints]
    assert found == [(None, CheckpointStatus.VALIDATION_FAILED), (1, CheckpointStatus.VALIDATED)]


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
def test_a_driver_killed_right_after_the_report_does_not_forget_the_validation(tmp_path, mode):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from test_validation import fit, report
        from holdfast import CheckpointUploadMode
        import holdfast, time

        def loop(config):
            for step in range(3):
                report(step, mode=CheckpointUploadMode(sys.argv[2]))
            holdfast.get_all_reported_checkpoints(holdfast.CheckpointConsistencyMode.COMMITTED)
            os.kill(driver, signal.SIGKILL)
            time.sleep(60)

        driver = os.getpid()
        fit(loop, sys.argv[1], lambda checkpoint: time.sleep(60))
        """
    )
    with Driver(script, tmp_path, mode, env=where_this_can_be_imported()) as driver:
        driver.communicate(timeout=LIMIT_S)
        assert driver.returncode == -signal.SIGKILL
    statuses = {each.status for each in train.Run(tmp_path / "run").checkpoints}
    assert statuses == {CheckpointStatus.PENDING_VALIDATION}
    assert len(train.Run(tmp_path / "run").checkpoints) == 3


def test_an_outcome_after_the_last_report_decides_what_is_kept_also_in_the_next_fit(tmp_path):
    def loop(config):
        if train.get_checkpoint() is None:
            for step in range(4):
                report(step)
            raise RuntimeError("over")

    def slow(checkpoint):
        time.sleep(60)

    kept = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="val", checkpoint_score_order="max")
    with pytest.raises(WorkerGroupError):
        fit(loop, tmp_path, slow, kept=kept)
    assert len(train.Run(tmp_path / "run").checkpoints) == 4
    result = fit(loop, tmp_path, lambda checkpoint: {"val": step_of(checkpoint)}, kept=kept)
    assert [step_of(each.checkpoint) for each in train.Run(result.path).checkpoints] == [3]
