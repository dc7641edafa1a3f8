"""What must be true of a trainer that runs in a worker."""

from __future__ import annotations

from typing import Any, TypeVar

from holdfast.errors import ConfigurationError
from holdfast.lightning.packages import package_of
from holdfast.worker.context import get_context

T = TypeVar("T")


def prepare_trainer(trainer: T) -> T:
    """Looks whether a trainer trains together with those of the other workers, and gives it back.

    Args:
        trainer: A `Trainer` of `lightning` or `pytorch_lightning`.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ConfigurationError: It is no trainer, or does not span the workers.
    """
    package_of(trainer)
    check_spans_workers(trainer)
    return trainer


def check_spans_workers(trainer: Any) -> None:
    """Refuses a trainer that knows of fewer workers, or of more, than there are.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ConfigurationError: It does.
    """
    context = get_context()
    there, here = (context.get_world_rank(), context.get_world_size()), (trainer.global_rank, trainer.world_size)
    if there == here:
        return
    raise ConfigurationError(
        f"the Trainer of worker {there[0]} of {there[1]} takes itself for rank {here[0]} of {here[1]}, so it would not train together "
        "with the others; pass Trainer(devices='auto', strategy=RayDDPStrategy(), plugins=[RayLightningEnvironment()]) of "
        f"holdfast.lightning, or Trainer(devices={there[1]}, strategy='ddp')"
    )
