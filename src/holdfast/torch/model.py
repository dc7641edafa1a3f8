"""`prepare_model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from holdfast.errors import ConfigurationError
from holdfast.torch.devices import get_device
from holdfast.worker.context import get_context

Strategy = Literal["ddp", "fsdp"]


def prepare_model(
    model: nn.Module,
    move_to_device: bool | torch.device | str = True,
    parallel_strategy: Strategy | None = "ddp",
    parallel_strategy_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Moves a model to this worker's device and, with two workers or more, wraps it for training together.

    A single worker gets the bare model back, so that `model.module` exists only where there is a wrapper.

    Args:
        model: The same on every rank, or at least of the same shape: rank 0's weights are what all start from.
        move_to_device: True for this worker's device, a device for another one, False to leave the model where it is.
        parallel_strategy: `ddp`, `fsdp` (`FullyShardedDataParallel`), or None for no wrapper. BatchNorm stays as it is
            in all of them.
        parallel_strategy_kwargs: For the wrapper.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ConfigurationError: No such strategy, or not a model.
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"prepare_model(model=...) takes a torch.nn.Module, not {type(model).__name__}")
    if parallel_strategy not in ("ddp", "fsdp", None):
        raise ConfigurationError(
            f"prepare_model(parallel_strategy={parallel_strategy!r}): there are 'ddp', 'fsdp' and None for no wrapper"
        )
    world_size = get_context().get_world_size()
    device = get_device() if isinstance(move_to_device, bool) else torch.device(move_to_device)
    if move_to_device is not False:
        model = model.to(device)
    if parallel_strategy is None or world_size == 1:
        return model
    kwargs = dict(parallel_strategy_kwargs or {})
    if parallel_strategy == "ddp":
        if device.type != "cpu":
            kwargs = {"device_ids": [device], "output_device": device, **kwargs}
        return nn.parallel.DistributedDataParallel(model, **kwargs)
    from torch.distributed.fsdp import FullyShardedDataParallel

    # Without it FSDP looks for an accelerator, and refuses to work where there is none.
    kwargs.setdefault("device_id", device)
    return FullyShardedDataParallel(model, **kwargs)
