"""How workers form a torch process group."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from holdfast.checks import check_choice, check_package
from holdfast.errors import ConfigurationError
from holdfast.worker.backend import BackendConfig

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext

check_installed = functools.partial(check_package, "torch", "PyTorch")


@dataclass(frozen=True)
class TorchConfig(BackendConfig):
    """The process group that workers find when the training function begins, also where there is only one.

    Attributes:
        backend: `gloo`, `nccl` or any that torch knows, also `cpu:gloo,cuda:nccl`. None: `nccl` for workers with
            GPUs, else `gloo`. (`nccl` alone, so that `get_backend()` answers what scripts compare with.)
        init_method: How workers on several nodes find each other: `env` or `tcp`. On one node they meet on the
            loopback interface either way.
        timeout_s: Seconds that forming the group, or a collective in it, may take.
        gpus_per_worker: Set by `TorchTrainer` from its `ScalingConfig`; None counts what the worker sees.
    """

    share_gpus: ClassVar[bool] = True

    backend: str | None = None
    init_method: Literal["env", "tcp"] = "env"
    timeout_s: float = 1800
    gpus_per_worker: int | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.backend is not None and (not isinstance(self.backend, str) or not self.backend):
            raise ConfigurationError(f"TorchConfig.backend must be 'gloo', 'nccl' or None, not {self.backend!r}")
        check_choice("TorchConfig.init_method", self.init_method, ("env", "tcp"))
        if isinstance(self.timeout_s, bool) or not isinstance(self.timeout_s, int | float) or not self.timeout_s > 0:
            raise ConfigurationError(f"TorchConfig.timeout_s must be seconds above 0, not {self.timeout_s!r}")

    def preload(self) -> tuple[str, ...]:
        """What DDP and an optimizer import, the first of them on first use only, which takes seconds."""
        return (
            "torch",
            "torch._dynamo",
            "torch.nn.parallel",
            "torch.optim.lr_scheduler",
            "torch.utils.data.distributed",
            "torch.utils.serialization",
            "holdfast.torch.group",
            "holdfast.torch.data",
            "holdfast.torch.lightning",
            "holdfast.torch.model",
            "holdfast.torch.reproducibility",
        )

    def on_start(self, context: TrainContext) -> None:
        """Forms the group, and has Lightning know it.

        Raises:
            ConfigurationError: torch has no such backend.
            WorkerStartError: The group did not form in time.
        """
        check_installed()
        from holdfast.torch import group, lightning

        group.form(self, context)
        lightning.know_workers()

    def on_end(self, context: TrainContext) -> None:
        """Leaves the group."""
        from holdfast.torch import group

        group.leave(context)
