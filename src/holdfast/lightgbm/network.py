"""Where LightGBM's workers listen for each other."""

from __future__ import annotations

import logging
import random
import socket
from typing import TYPE_CHECKING, Any

from holdfast.collective import broadcast_from_rank_zero
from holdfast.errors import WorkerStartError
from holdfast.worker.context import get_context

if TYPE_CHECKING:
    from holdfast.worker.context import TrainContext

_ADDRESS = "127.0.0.1"
# Below what Linux and macOS give to programs that ask for any port.
_PORTS = range(20_000, 32_000)
_LOG = logging.getLogger("holdfast.lightgbm")

# How many workers there are, in the training function of a LightGBMTrainer.
_world_size: int | None = None
_locks: list[socket.socket] = []


def get_network_params() -> dict[str, Any]:
    """The parameters by which the workers of a `LightGBMTrainer` find each other: `machines`, `local_listen_port`, `num_machines`.

    Call it on every rank, once for each `lightgbm.train`: a port that LightGBM has used cannot be bound again for a minute. Give
    `tree_learner` beside them (`"data"`), without which each rank trains a model by itself, and `pre_partition=True`, for each has its own
    rows.

    Returns:
        The parameters; none for a single worker and, with a warning, outside a `LightGBMTrainer`.

    Raises:
        WorkerStartError: No ports are free.
        UnevenCallsError: A rank returned, or waits in another call.
    """
    if _world_size is None:
        _LOG.warning(
            "get_network_params() knows of no other workers; call it in the training function of a LightGBMTrainer"
        )
        return {}
    if _world_size == 1:
        return {}
    rank = get_context().get_world_rank()
    ports: list[int] = broadcast_from_rank_zero(_free_ports(_world_size) if rank == 0 else [])
    return {
        "machines": ",".join(f"{_ADDRESS}:{port}" for port in ports),
        "local_listen_port": ports[rank],
        "num_machines": _world_size,
    }


def prepare(context: TrainContext) -> None:
    """The function begins."""
    global _world_size
    _world_size = context.get_world_size()


def forget() -> None:
    """The function has ended."""
    global _world_size
    _world_size = None
    while _locks:
        _locks.pop().close()


def _free_ports(count: int) -> list[int]:
    """Ports that only LightGBM binds.

    It cannot be handed a socket, and does not allow the reuse of an address, so nobody can hold its ports for it. But no program is given
    them by the system, and jobs of ours keep out of each other's way: each holds the UDP port of the same number, which the kernel frees
    however this process ends.
    """
    ports = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind((_ADDRESS, port))
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind(("", port))  # as LightGBM does
        except OSError:
            lock.close()
            continue
        _locks.append(lock)
        ports.append(port)
        if len(ports) == count:
            return ports
    raise WorkerStartError(f"LightGBM's workers need {count} ports, and of {_PORTS} only {len(ports)} are free")
