"""What must be true of a trainer that runs in a worker, and what makes it so."""

from __future__ import annotations

from multiprocessing.context import get_spawning_popen
from types import ModuleType
from typing import Any, TypeVar

from holdfast.errors import ConfigurationError
from holdfast.lightning.packages import package_of, packages_in_use
from holdfast.worker.context import get_context, is_inside

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


def know_workers() -> None:
    """Has `Trainer(devices="auto")` count the workers of this node where they train on the CPU.

    Of GPUs it counts what it sees, which is one for each worker. Of CPUs it would take one, and then every worker trains alone.
    """
    if not is_inside() or get_context().get_local_world_size() == 1:
        return
    for package in packages_in_use():
        _count_workers(package, get_context().get_local_world_size())


def _count_workers(package: ModuleType, number: int) -> None:
    class WorkerCPUs(package.accelerators.CPUAccelerator):  # type: ignore[name-defined] # a class of a module that is known at run time
        """The CPU, as often as there are workers on it."""

        @staticmethod
        def auto_device_count() -> int:
            return number

        def __reduce_ex__(self, protocol: Any) -> Any:
            if get_spawning_popen() is not None:  # multiprocessing is about to send the trainer to a new process
                raise ConfigurationError(
                    "the Trainer's strategy starts processes of its own, and here the workers are there already; pass strategy='ddp', or "
                    "RayDDPStrategy() of holdfast.lightning"
                )
            return super().__reduce_ex__(protocol)

    # Lightning's own means to put another accelerator in the place of one of its own.
    package.accelerators.AcceleratorRegistry.register("cpu", WorkerCPUs, description="CPUs of workers", override=True)
