"""Names that Ray Train's classes once took end in an error that says what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import holdfast as train
from holdfast import CheckpointConfig, ConfigurationError, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from holdfast.former import _REMEDIES


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: CheckpointConfig(checkpoint_frequency=2), r"frequency="),
        (lambda: CheckpointConfig(2, checkpoint_at_end=True), r"checkpoint_at_end="),
        (lambda: RunConfig(sync_config=object()), "leave it out"),
        (lambda: RunConfig(stop={"epoch": 3}), "stop its loop"),
        (lambda: RunConfig(verbose=0), "progress='quiet'"),
        (lambda: RunConfig(log_to_file=True), r"\.holdfast/logs"),
        (lambda: RunConfig(local_dir="runs"), "storage_path="),
        (lambda: ScalingConfig(trainer_resources={"CPU": 1}), "reserves nothing"),
        (lambda: FailureConfig(fail_fast=True), "max_failures=0"),
        (lambda: DataParallelTrainer(print, resume_from_checkpoint="runs/one"), "resume_from= begins"),
    ],
)
def test_a_former_argument_is_told_what_to_do_instead(make: Callable[[], Any], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\(\w+=\.\.\.\) is not taken here: .*{remedy}"):
        make()


def test_a_name_of_ray_trains_says_what_to_do_instead() -> None:
    with pytest.raises(
        ImportError, match=r"holdfast\.get_dataset_shard is not there: load the data in the training function"
    ):
        train.get_dataset_shard("train")
    with pytest.raises(ImportError, match=r"XGBoostCheckpoint is not there: .*get_model"):
        from holdfast.xgboost import XGBoostCheckpoint  # noqa: F401
    with pytest.raises(ImportError, match=r"TorchCheckpoint is not there"):
        from holdfast.torch import TorchCheckpoint  # noqa: F401
    assert not hasattr(train, "nothing_of_anybodys")


def test_none_stood_for_not_given() -> None:
    assert CheckpointConfig(checkpoint_frequency=None, num_to_keep=2) == CheckpointConfig(2)  # type: ignore[call-arg]
    DataParallelTrainer(print, resume_from_checkpoint=None)  # type: ignore[call-arg]


def test_signatures_stay_what_they_are() -> None:
    assert next(iter(inspect.signature(FailureConfig).parameters)) == "max_failures"
    for name, remedies in _REMEDIES.items():
        kind = getattr(train, name, None)
        if kind is not None:
            assert not remedies.keys() & inspect.signature(kind).parameters.keys()
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_failure'"):
        FailureConfig(max_failure=1)  # type: ignore[call-arg]


def test_former_methods_are_not_there_and_say_so() -> None:
    assert not hasattr(DataParallelTrainer, "restore")
    with pytest.raises(AttributeError, match=r"DataParallelTrainer\.can_restore is not there: fit\(\)"):
        DataParallelTrainer.can_restore("runs/one")


class Sub(DataParallelTrainer):
    """A user's own."""


def test_a_subclass_is_called_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^Sub\(preprocessor=\.\.\.\)"):
        Sub(print, preprocessor=object())  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match=r"^Sub\.restore "):
        Sub.restore("runs/one")
