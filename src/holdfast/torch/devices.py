"""Which devices a worker trains on."""

from __future__ import annotations

import torch

from holdfast.errors import ResourceError
from holdfast.worker.context import TrainContext, get_context

# What `TorchTrainer` said about this process; None where the function runs under another trainer.
_gpus_per_worker: int | None = None


def assign(gpus_per_worker: int | None) -> None:
    """Remembers how many of the visible GPUs belong to each worker of this node."""
    global _gpus_per_worker
    _gpus_per_worker = gpus_per_worker


def get_device() -> torch.device:
    """The device of this worker, the first one if it has several: a GPU where `use_gpu=True`, else the CPU.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ResourceError: The worker's GPU is not visible to it.
    """
    return get_devices()[0]


def get_devices() -> list[torch.device]:
    """All devices of this worker: its GPUs, or the CPU alone.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ResourceError: The worker's GPUs are not visible to it.
    """
    return devices_of(get_context())


def devices_of(context: TrainContext) -> list[torch.device]:
    """The devices of the worker that `context` describes.

    Raises:
        ResourceError: Its GPUs are not visible to it.
    """
    if _gpus_per_worker == 0:
        return [torch.device("cpu")]
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = visible // context.get_local_world_size() if _gpus_per_worker is None else _gpus_per_worker
    if count == 0:
        return [torch.device("cpu")]
    first = context.get_local_rank() * count
    if first + count > visible:
        raise ResourceError(
            f"rank {context.get_world_rank()} was given GPU {first}"
            + (f" to {first + count - 1}" if count > 1 else "")
            + f", but torch sees {visible} (torch {torch.__version__}, CUDA_VISIBLE_DEVICES names the group's); "
            "install a torch built for CUDA, or set use_gpu=False"
        )
    return [torch.device("cuda", first + index) for index in range(count)]
