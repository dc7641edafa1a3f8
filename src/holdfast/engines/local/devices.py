"""Which GPUs this machine has, without touching one: the driver must never initialise a GPU for its workers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from holdfast.config import ScalingConfig
from holdfast.errors import ResourceError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SMI_TIMEOUT_S = 20.0


def visible_gpus() -> list[str]:
    """The GPUs that workers may use, as `CUDA_VISIBLE_DEVICES` names them."""
    chosen = os.environ.get(_VISIBLE)
    if chosen is not None:
        # CUDA itself stops at the first entry that is no device.
        names = []
        for name in (part.strip() for part in chosen.split(",")):
            if not name or name == "-1":
                break
            names.append(name)
        return names
    cards = Path("/proc/driver/nvidia/gpus")
    if cards.is_dir():
        return [str(index) for index, _ in enumerate(cards.iterdir())]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(index) for index, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


def check_gpus(scaling: ScalingConfig, num_workers: int) -> list[str]:
    """The GPUs for a group, or none where it needs none.

    Raises:
        ResourceError: There are too few.
    """
    if not scaling.use_gpu:
        return []
    gpus = visible_gpus()
    needed = num_workers * scaling.gpus_per_worker
    if len(gpus) < needed:
        limit = f" ({_VISIBLE}={os.environ[_VISIBLE]!r})" if _VISIBLE in os.environ else ""
        raise ResourceError(
            f"ScalingConfig(num_workers={num_workers}, use_gpu=True) needs {needed} GPU{'s' if needed > 1 else ''}, and this machine offers "
            f"{len(gpus)}{limit}; use fewer workers, or use_gpu=False to train on the CPU"
        )
    return gpus[:needed]


def gpu_variables(gpus: list[str], local_rank: int, per_worker: int, *, shared: bool) -> dict[str, str]:
    """`CUDA_VISIBLE_DEVICES` for one worker: its own devices, or all of the group's in local rank order.

    A worker that was given none sees none: a framework that looks for itself would take all, on every worker.
    """
    own = gpus if shared and per_worker else gpus[local_rank * per_worker : (local_rank + 1) * per_worker]
    return {_VISIBLE: ",".join(own)}
