"""Validation beside training: its process, its arguments, its outcome, and what waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import holdfast as train
from holdfast import (
    Checkpoint,
    CheckpointConfig,
    CheckpointConsistencyMode,
    CheckpointUploadMode,
    ConfigurationError,
    DataParallelTrainer,
    FailureConfig,
    OutsideWorkerError,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
    ValidationTaskConfig,
    WaitTimeoutError,
    WorkerGroupError,
)
from holdfast.reported import CheckpointStatus
from support.waiting import LIMIT_S, await_file


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


def step_of(checkpoint):
    with checkpoint.as_directory() as directory:
        return int(Path(directory, "step").read_text())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
def test_its_metrics_join_those_of_the_checkpoint_and_rank_it(tmp_path, workers, mode):
    parent = os.getpid()

    def validate(checkpoint, factor):
        assert os.getpid() != parent
        with pytest.raises(OutsideWorkerError):
            train.report({})
        return {"val": factor * abs(step_of(checkpoint) - 1), "step": "overwritten"}

    def loop(config):
        for step in range(3):
            report(step, mode=CheckpointUploadMode(config["mode"]))
        listed = train.get_all_reported_checkpoints()
        assert [(each.metrics["val"], each.status) for each in listed] == [
            (value, CheckpointStatus.VALIDATED) for value in (10, 0, 10)
        ]

    kept = CheckpointConfig(checkpoint_score_attribute="val", checkpoint_score_order="min")
    task = ValidationTaskConfig(fn_kwargs={"factor": 10})
    result = fit(loop, tmp_path, validate, workers=workers, kept=kept, task=task, mode=mode)
    best = result.get_best_checkpoint("val", "min")
    assert step_of(best) == 1
    reported = train.Run(result.path).checkpoints
    assert [each.metrics for each in reported] == [{"step": "overwritten", "val": value} for value in (10, 0, 10)]
    assert {each.status for each in reported} == {CheckpointStatus.VALIDATED}
    assert step_of(train.Run(result.path).best().checkpoint) == 1


def test_a_report_gives_arguments_and_a_limit_of_its_own(tmp_path):
    def validate(checkpoint, wait_s=0.0, name="default"):
        print("hello from", name)
        time.sleep(wait_s)
        return {"name": name}

    def loop(config):
        report(0)
        report(1, ValidationTaskConfig(fn_kwargs={"name": "own"}))
        report(2, ValidationTaskConfig(fn_kwargs={"wait_s": 60}, timeout_s=0.3))
        report(3, validation=False)

    result = fit(loop, tmp_path, validate)
    found = [(each.metrics.get("name"), each.status.value) for each in train.Run(result.path).checkpoints]
    assert found == [
        ("default", "VALIDATED"), ("own", "VALIDATED"), (None, "VALIDATION_TIMEOUT"), (None, "COMMITTED"),
    ]  # fmt: skip
    logs = Path(result.path, ".holdfast", "logs", "validation")
    assert logs.joinpath("checkpoint_000002.log").read_text() == "hello from own\n"


ENDINGS = {
    "raises": lambda: 1 / 0,
    "exits": lambda: os._exit(3),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "returns nothing": lambda: None,
    "returns what is no metric": lambda: {"a": object()},
}


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_one_that_fails_is_noted_and_told_of_and_training_goes_on(tmp_path, ending, caplog):
    def validate(checkpoint):
        return ENDINGS[ending]() if step_of(checkpoint) == 0 else {"val": 1}

    def loop(config):
        report(0)
        report(1)
        return "done"

    result = fit(loop, tmp_path, validate)
    assert result.return_value == "done"
    statuses = [each.status.value for each in train.Run(result.path).checkpoints]
    assert statuses == ["VALIDATION_FAILED", "VALIDATED"]
    assert "the validation of checkpoint_000001 failed" in caplog.text


def test_retention_waits_for_it_and_then_decides_by_it(tmp_path):
    """The best by validation is the first; it must be there still when its score comes, after five others."""

    def validate(checkpoint, base):
        await_file(Path(base, "go"))
        return {"val": -step_of(checkpoint)}

    def loop(config):
        run = train.get_context().get_storage().experiment_fs_path
        for step in range(6):
            report(step)
        time.sleep(0.3)  # retention has had time for what it must not do
        assert len([name for name in os.listdir(run) if name.startswith("checkpoint_")]) == 6
        Path(config["base"], "go").touch()

    kept = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="val")
    task = ValidationTaskConfig(fn_kwargs={"base": str(tmp_path)})
    result = fit(loop, tmp_path, validate, kept=kept, task=task)
    assert [step_of(each.checkpoint) for each in train.Run(result.path).checkpoints] == [0, 1, 5]
    assert sorted(name for name in os.listdir(result.path) if name.startswith("checkpoint_")) == [
        "checkpoint_000001", "checkpoint_000002", "checkpoint_000006",
    ]  # fmt: skip


def test_the_list_of_checkpoints_waits_as_it_is_told(tmp_path):
    def validate(checkpoint, base):
        await_file(Path(base, "go"))
        return {"val": 1}

    def loop(config):
        report(0)
        listed = train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        assert [each.status for each in listed] == [CheckpointStatus.PENDING_VALIDATION]
        with pytest.raises(WaitTimeoutError, match="validated"):
            train.get_all_reported_checkpoints(timeout_s=0.1)
        threading.Timer(0.2, Path(config["base"], "go").touch).start()
        listed = train.get_all_reported_checkpoints(timeout_s=30)
        assert [each.status for each in listed] == [CheckpointStatus.VALIDATED]

    fit(loop, tmp_path, validate, task=ValidationTaskConfig(fn_kwargs={"base": str(tmp_path)}))


def test_bad_input(tmp_path):
    with pytest.raises(ConfigurationError, match="must be a function"):
        ValidationConfig(3)
    with pytest.raises(ConfigurationError, match="fn_kwargs"):
        ValidationTaskConfig(fn_kwargs=[1])
    with pytest.raises(ConfigurationError, match="timeout_s"):
        ValidationTaskConfig(timeout_s=-1)
    with pytest.raises(ConfigurationError, match="validation_config"):
        DataParallelTrainer(print, validation_config=print)
    lock = threading.Lock()
    with pytest.raises(train.SerializationError, match="lock"):
        fit(print, tmp_path, lambda checkpoint: lock)
    assert not (tmp_path / "run").exists()

    def loop(config):
        with pytest.raises(ConfigurationError, match="validation_config"):
            report(0)
        with pytest.raises(ConfigurationError, match="takes True"):
            report(0, validation="yes")

    fit(loop, tmp_path, None)


def test_arguments_that_the_function_does_not_take_or_lacks_are_told_of_at_the_report(tmp_path):
    def validate(checkpoint, factor):
        return {"val": factor}

    def loop(config):
        with pytest.raises(ConfigurationError, match=r"'factr', which validate\(checkpoint, factor\) does not take"):
            report(0, ValidationTaskConfig(fn_kwargs={"factor": 2, "factr": 2}))
        with pytest.raises(ConfigurationError, match="lacks 'factor'"):
            report(0, ValidationTaskConfig(fn_kwargs={}))
        for wish in (True, ValidationTaskConfig(timeout_s=60)):
            with pytest.raises(ConfigurationError, match=r"ValidationConfig.*lacks 'factor'"):
                report(0, wish)
        report(0, ValidationTaskConfig(fn_kwargs={"factor": 2}))

    result = fit(loop, tmp_path, validate)
    assert [each.metrics["val"] for each in train.Run(result.path).checkpoints] == [2]


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
def test_a_wish_without_a_checkpoint_is_an_error_on_every_rank(tmp_path, mode):
    def loop(config):
        first = train.get_context().get_world_rank() == 0
        wish = {"validation": True, "checkpoint_upload_mode": CheckpointUploadMode(mode)}
        told = "ranks 0 and 1 asked for a validation of report 1, but no rank"
        with pytest.raises(train.ReportError, match=told):
            train.report({}, **wish).result(60)
        if mode == "ASYNC":  # it has returned, so the next one raises it, too
            with pytest.raises(train.ReportError, match=told):
                train.report({})
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "step").write_text("0")
            train.report({}, Checkpoint(directory) if first else None, validation=True)

    result = fit(loop, tmp_path, lambda checkpoint: {"val": 1}, workers=2)
    assert [each.status for each in train.Run(result.path).checkpoints] == [CheckpointStatus.VALIDATED]


def test_nested_metrics_join_and_a_score_that_is_no_number_is_a_failure(tmp_path):
    def validate(checkpoint):
        return {"val": {"accuracy": 1.0 if step_of(checkpoint) else "high"}}

    def loop(config):
        for step in range(2):
            report(step, val={"loss": 0.5})

    kept = CheckpointConfig(checkpoint_score_attribute="val/accuracy")
    result = fit(loop, tmp_path, validate, kept=kept)
    found = [(each.metrics["val"], each.status.value) for each in train.Run(result.path).checkpoints]
    assert found == [({"loss": 0.5}, "VALIDATION_FAILED"), ({"loss": 0.5, "accuracy": 1.0}, "VALIDATED")]


def test_a_trainer_without_a_function_says_that_some_wait_for_one(tmp_path, caplog):
    def loop(config):
        if train.get_checkpoint() is None:
            report(0)
            raise RuntimeError("over")

    def slow(checkpoint):
        time.sleep(60)

    with pytest.raises(WorkerGroupError):
        fit(loop, tmp_path, slow)
    fit(loop, tmp_path, None)
    assert "no validation_config" in caplog.text


def test_arguments_that_cannot_travel_are_named_before_anything_starts(tmp_path):
    task = ValidationTaskConfig(fn_kwargs={"lock": threading.Lock()})
    with pytest.raises(train.SerializationError, match=r"fn_kwargs\['lock'\]"):
        fit(print, tmp_path, lambda checkpoint, lock: {}, task=task)
    assert not (tmp_path / "run").exists()


def test_a_child_that_it_leaves_behind_delays_no_report(tmp_path, monkeypatch):
    """It holds the pipe of the validation's output; who waited for the last lines would wait too long for this test."""
    monkeypatch.setattr("holdfast.engines.local.output._DRAIN_S", LIMIT_S)
    child = tmp_path / "child"

    def validate(checkpoint):
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        child.write_text(str(left.pid))
        return {}

    def loop(config):
        report(0)
        validated = train.get_all_reported_checkpoints(timeout_s=LIMIT_S)
        for _ in range(100):
            train.report({})
        return [each.status for each in validated]

    began = time.monotonic()
    try:
        assert fit(loop, tmp_path, validate).return_value == [CheckpointStatus.VALIDATED]
        assert time.monotonic() - began < LIMIT_S
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)


def test_the_traceback_is_in_its_log_and_a_missing_score_is_told_of(tmp_path, caplog):
    def validate(checkpoint):
        if step_of(checkpoint) == 0:
            raise ValueError("this is why")
        return {"other": 1}

    def loop(config):
        report(0)
        report(1)

    fit(loop, tmp_path, validate, kept=CheckpointConfig(checkpoint_score_attribute="val"))
    log = tmp_path / "run" / ".holdfast" / "logs" / "validation" / "checkpoint_000001.log"
    assert "ValueError: this is why" in log.read_text()
    assert "checkpoint_000002 has no number under 'val'" in caplog.text
