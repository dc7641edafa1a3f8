"""Has PyTorch Lightning's trainers count the workers, in scripts that use nothing of ours but `TorchTrainer`, too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from multiprocessing.context import get_spawning_popen
from types import ModuleType
from typing import Any

from holdfast.errors import ConfigurationError
from holdfast.worker.context import get_context, is_inside

# Lightning is two packages with the same classes.
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def know_workers() -> None:
    """Has `Trainer(devices="auto")`, which is the default, count the workers of this node where they train on the CPU.

    Of GPUs it counts what it sees, which is one for each worker. Of CPUs it would take one, and then every worker trains alone. What
    imports Lightning later, as functions do, finds it so, too.
    """
    number = get_context().get_local_world_size() if is_inside() else 1
    if number == 1:
        return
    for name in PACKAGES:
        if name in sys.modules:
            _count_workers(sys.modules[name], number)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # Behind the hooks of others, which wrap what they find; before what reads directories.
        place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
        sys.meta_path.insert(place, _Finder(number))


class _Finder(MetaPathFinder):
    """Finds Lightning where the other finders do, and has it count when it has been imported."""

    def __init__(self, number: int) -> None:
        self._number = number

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in PACKAGES:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        asked = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next(filter(None, asked), None)
        loader: Any = None if spec is None else spec.loader
        if hasattr(loader, "exec_module"):
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if module.__name__ == fullname:  # that of an archive loads others, too
                    _count_workers(module, self._number)

            # On this one loader, which is all else that it was: others ask it for the package's files.
            loader.exec_module = exec_module
        return spec


def _count_workers(package: ModuleType, number: int) -> None:
    class WorkerCPUs(package.accelerators.CPUAccelerator):  # type: ignore[name-defined, misc] # a class of a module that is known at run time
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
