"""Lightning's strategies, and its picture of a cluster, for workers that Holdfast has started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigurationError
from holdfast.torch.lightning import know_workers
from holdfast.worker.context import get_context, is_inside

if TYPE_CHECKING:
    import torch


class OnWorkers:
    """A strategy whose ranks are the workers, each on its own device. Takes what Lightning's strategy takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        know_workers()
        super().__init__(*args, **kwargs)

    @property
    def root_device(self) -> torch.device:
        """The device of this worker."""
        from holdfast.torch import get_device

        return get_device()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """How data are shared out: to the workers, however many devices the trainer was told of."""
        context = get_context()
        return {"num_replicas": context.get_world_size(), "rank": context.get_world_rank()}

    def _configure_launcher(self) -> None:
        """None: the processes are there. Lightning refuses what starts some in a notebook."""


class RayDDPStrategy(OnWorkers):
    """`DDPStrategy` for workers: its ranks are the workers, each on its own device. Takes what Lightning's takes."""


class RayFSDPStrategy(OnWorkers):
    """`FSDPStrategy` for workers; on CPUs, too, to try a script before it gets its GPUs.

    Raises:
        ConfigurationError: At the start of training: a state that torch cannot save on a CPU.
    """

    def _setup_model(self, model: Any) -> Any:
        strategy: Any = super()
        if self.root_device.type != "cpu":
            return strategy._setup_model(model)
        import torch
        from torch.distributed.fsdp import FullyShardedDataParallel

        settings: Any = self
        if settings._state_dict_type == "full":
            raise ConfigurationError(
                "torch crashes where it gathers the full state of FSDP on a CPU; pass "
                "RayFSDPStrategy(state_dict_type='sharded'), or train on GPUs"
            )
        # Without a device FSDP looks for an accelerator, and refuses to work where there is none; Lightning names none
        # for a CPU. A model that is wrapped already is left alone by it.
        if not any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            model = FullyShardedDataParallel(
                module=model,
                cpu_offload=settings.cpu_offload,
                mixed_precision=settings.mixed_precision_config,
                sharding_strategy=settings.sharding_strategy,
                device_id=torch.device("cpu"),
                **settings.kwargs,
            )
            settings.kwargs.pop("auto_wrap_policy", None)  # done; Lightning would warn that it has no effect
        return strategy._setup_model(model)


class RayDeepSpeedStrategy(OnWorkers):
    """`DeepSpeedStrategy` for workers; on CPUs, too, where DeepSpeed was built for them and `DS_ACCELERATOR=cpu` is set."""

    @property
    def root_device(self) -> torch.device:
        """The device of this worker; with an index, which DeepSpeed asks for."""
        import torch

        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Forms DeepSpeed's group, or takes the one that is there."""
        strategy: Any = self
        if self.root_device.type != "cpu":
            super().setup_environment()  # type: ignore[misc] # of Lightning's class, which comes behind this one
            return
        # What Lightning does, without its demand for GPUs: DeepSpeed itself has none.
        strategy.accelerator.setup_device(self.root_device)
        strategy.set_world_ranks()
        strategy._init_deepspeed_distributed()


class RayLightningEnvironment:
    """The workers as a `ClusterEnvironment`: they run already, and have their ranks."""

    def __init__(self) -> None:
        know_workers()
        super().__init__()

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning is to start none."""
        return True

    @property
    def main_address(self) -> str:
        """Where the workers meet."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """The port there; 0 where one worker alone needs none."""
        return int(os.environ.get("MASTER_PORT", "0"))

    @staticmethod
    def detect() -> bool:
        """Whether this process is a worker."""
        return is_inside()

    def world_size(self) -> int:
        """The number of workers."""
        return get_context().get_world_size()

    def set_world_size(self, size: int) -> None:
        """Nothing: it is what it is."""

    def global_rank(self) -> int:
        """This worker's rank among all."""
        return get_context().get_world_rank()

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is what it is."""

    def local_rank(self) -> int:
        """This worker's rank on its node."""
        return get_context().get_local_rank()

    def node_rank(self) -> int:
        """The rank of this node."""
        return get_context().get_node_rank()
