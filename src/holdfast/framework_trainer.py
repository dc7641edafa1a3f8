"""What the trainers of frameworks share: the arguments of `DataParallelTrainer` beside a config of their own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypedDict, TypeVar

from holdfast.checkpoint import Checkpoint
from holdfast.config import RunConfig, ScalingConfig, ValidationConfig
from holdfast.errors import ConfigurationError
from holdfast.reported import ReportedCheckpoint
from holdfast.run import Run
from holdfast.trainer import DataParallelTrainer
from holdfast.worker.backend import BackendConfig

Init = TypeVar("Init", bound=Callable[..., None])
Config = TypeVar("Config", bound=BackendConfig)

TrainFunction: TypeAlias = Callable[[], Any] | Callable[[dict[str, Any]], Any]


class TrainerArguments(TypedDict, total=False):
    """The arguments of `DataParallelTrainer` that each trainer takes, for type checkers."""

    train_loop_config: dict[str, Any] | None
    scaling_config: ScalingConfig | None
    run_config: RunConfig | None
    datasets: Mapping[str, Any] | None
    dataset_config: Any
    validation_config: ValidationConfig | None
    metadata: Mapping[str, Any] | None
    resume_from: Checkpoint | ReportedCheckpoint | Run | str | os.PathLike[str] | None


def shows_all_arguments(init: Init) -> Init:
    """Decorates a constructor that takes `**others: Unpack[TrainerArguments]`: `help()` names each of them."""
    own = inspect.signature(init)
    shared = inspect.signature(DataParallelTrainer).parameters
    parameters = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    parameters += [shared[name] for name in TrainerArguments.__annotations__]
    vars(init)["__signature__"] = own.replace(parameters=parameters)
    return init


def chosen(config: Config | None, kind: type[Config], name: str) -> Config:
    """The config that a trainer was given, or the default.

    Args:
        name: The argument's.

    Raises:
        ConfigurationError: It is none of that kind.
    """
    if config is None:
        return kind()
    if not isinstance(config, kind):
        raise ConfigurationError(f"{name} must be a {kind.__name__}, not {config!r}")
    return config
