"""The hook through which a framework prepares a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext


@dataclass(frozen=True)
class BackendConfig:
    """Does nothing: workers that need no framework. Frameworks derive from it; it travels by cloudpickle.

    Attributes:
        share_gpus: Every worker of a node sees all GPUs of the group, in local rank order, and picks its own by its
            local rank, as frameworks written for torchrun do. Else it sees only its own.
    """

    share_gpus: ClassVar[bool] = False

    def preload(self) -> tuple[str, ...]:
        """Modules that the zygote imports once, before it forks workers."""
        return ()

    def on_start(self, context: TrainContext) -> None:
        """Runs in each worker before the function."""

    def on_end(self, context: TrainContext) -> None:
        """Runs in each worker after the function, also when it failed."""
