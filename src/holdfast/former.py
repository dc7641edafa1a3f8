"""Names that Ray Train has, or its classes once took: whoever uses one is told what to do here.

Arguments stand in no signature. A call with one of them ends in an error that says more than that it is unexpected; None, which stood for "not
given", is taken for that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

from holdfast.errors import ConfigurationError

T = TypeVar("T")

_IN_THE_FUNCTION = (
    "give it a function that calls {train}(...) with it, on data that is loaded there; docs/trees.md has one"
)
_BY_THE_CALLBACK = (
    "each report(..., checkpoint=...) makes a checkpoint, so the training function says when; "
    "frameworks' callbacks take it where they are made ({argument}=)"
)
_XGBOOST: Final = _IN_THE_FUNCTION.format(train="xgboost.train")
_LIGHTGBM: Final = _IN_THE_FUNCTION.format(train="lightgbm.train")

# By class and argument: what to do instead.
_REMEDIES: Final[Mapping[str, Mapping[str, str]]] = {
    "DataParallelTrainer": {
        "resume_from_checkpoint": "fit() with the same RunConfig.name and storage_path goes on by itself, and resume_from= begins with a "
        "checkpoint of somewhere else",
        "preprocessor": "it belongs to Ray Data; prepare the data in the function",
    },
    "XGBoostTrainer": dict.fromkeys(
        ("params", "dmatrix_params", "label_column", "num_boost_round", "train_kwargs"), _XGBOOST
    ),
    "LightGBMTrainer": dict.fromkeys(("params", "label_column", "num_boost_round", "train_kwargs"), _LIGHTGBM),
    "ScalingConfig": {
        "trainer_resources": "the driver is the script itself and reserves nothing; leave it out",
    },
    "CheckpointConfig": {
        "checkpoint_frequency": _BY_THE_CALLBACK.format(argument="frequency"),
        "checkpoint_at_end": _BY_THE_CALLBACK.format(argument="checkpoint_at_end"),
    },
    "FailureConfig": {
        "fail_fast": "max_failures=0, the default, ends the run at its first failure; leave it out",
    },
    "RunConfig": {
        "stop": "the training function ends by itself: stop its loop there",
        "sync_config": "what is reported goes to storage_path at once; leave it out",
        "verbose": "give progress='quiet' or 'plain', or leave it out",
        "progress_reporter": "give progress='quiet' or 'plain', or leave it out",
        "log_to_file": "what workers print is always kept below the run, in .holdfast/logs; leave it out",
        "local_dir": "give storage_path=",
    },
}


_NO_DATASETS: Final = (
    "load the data in the training function; holdfast.torch.prepare_data_loader gives each rank its part"
)
_GET_MODEL: Final = (
    "report with RayTrainReportCallback, whose get_model(checkpoint) reads the model; docs/{page}.md shows it"
)
# By module and name: what to do instead.
_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "holdfast": {
        "get_dataset_shard": _NO_DATASETS,
        "DataConfig": _NO_DATASETS,
        "SyncConfig": "what is reported goes to storage_path at once; leave it out",
        "LoggingConfig": "what workers print is always kept below the run, in .holdfast/logs; leave it out",
        "session": "its functions are here: holdfast.report, holdfast.get_checkpoint, holdfast.get_context",
    },
    "holdfast.torch": {
        "TorchCheckpoint": "save with torch.save into a directory, and report Checkpoint.from_directory(directory)",
        "accelerate": "use torch.amp, or Accelerate (docs/accelerate.md)",
        "prepare_optimizer": "use the optimizer as it is, with torch.amp.GradScaler for mixed precision",
        "backward": "call loss.backward(), with torch.amp.GradScaler for mixed precision",
    },
    "holdfast.xgboost": {"XGBoostCheckpoint": _GET_MODEL.format(page="trees")},
    "holdfast.lightgbm": {"LightGBMCheckpoint": _GET_MODEL.format(page="trees")},
    "holdfast.tensorflow": {
        "TensorflowCheckpoint": "report with holdfast.tensorflow.keras.ReportCheckpointCallback, whose get_model(checkpoint) reads the "
        "model; docs/keras.md shows it"
    },
}


def no_such_name(module: str, name: str) -> Exception:
    """What a module raises for a name that it has not; of Ray Train's it says what to do instead."""
    remedy = _NAMES.get(module, {}).get(name)
    if remedy is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    # An AttributeError would become another error, without its text, where the name is imported from the module.
    return ImportError(f"{module}.{name} is not there: {remedy}", name=module)


def knows_former_arguments(cls: type[T]) -> type[T]:
    """Decorates a class above: its former arguments are refused with what to do instead."""
    init, remedies = _init_of(cls), _REMEDIES[cls.__name__]

    @functools.wraps(init)
    def refusing(self: T, *args: Any, **kwargs: Any) -> None:
        for name in remedies.keys() & kwargs.keys():
            if kwargs.pop(name) is not None:
                raise ConfigurationError(f"{type(self).__name__}({name}=...) is not taken here: {remedies[name]}")
        init(self, *args, **kwargs)

    setattr(cls, "__init__", refusing)  # noqa: B010 - to a type checker, which shall go on seeing the signature, nothing changes
    return cls


def _init_of(cls: type[Any]) -> Callable[..., None]:
    init: Callable[..., None] = cls.__init__
    return init


class FormerMethod:
    """In a class: a method that there was once. Who asks for it gets an AttributeError that says what to do instead."""

    def __init__(self, remedy: str) -> None:
        self._remedy = remedy

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type[Any]) -> NoReturn:
        raise AttributeError(f"{owner.__name__}.{self._name} is not there: {self._remedy}")
