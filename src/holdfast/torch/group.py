"""Forming and leaving a process group."""

from __future__ import annotations

import datetime
import os
import socket
import sys
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore, distributed_c10d  # type: ignore[attr-defined] # they are there

from holdfast.errors import ConfigurationError, WorkerStartError
from holdfast.torch import devices

if TYPE_CHECKING:
    from holdfast.torch.config import TorchConfig
    from holdfast.worker.context import TrainContext

_BACKLOG = 4096

# A worker that was forked after this module was loaded has the zygote's random state, like all its siblings.
_LOADED_IN = os.getpid()

# Groups that must outlive every user of them. The destructor of gloo's joins its threads, and such a thread may
# be waiting for the interpreter's lock to free a tensor; a DDP model that is the last to hold the group destroys
# it without giving that lock up (https://github.com/pytorch/pytorch/issues/56297), and the process hangs.
_held: list[object] = []


def form(config: TorchConfig, context: TrainContext) -> None:
    """Makes this worker a member of the default process group, unless it is one.

    Raises:
        ConfigurationError: torch has no such backend.
        WorkerStartError: The group did not form in time.
    """
    _held.clear()
    _settle_process()
    devices.assign(config.gpus_per_worker)
    own = devices.devices_of(context)
    if own[0].type == "cuda":
        torch.cuda.set_device(own[0])
    if dist.is_initialized():
        return
    backend = config.backend or ("nccl" if own[0].type == "cuda" else "gloo")
    if not all(dist.is_backend_available(each) for each in _by_device(backend).values()):
        raise ConfigurationError(
            f"TorchConfig.backend {backend!r} is not in this torch ({torch.__version__}); "
            "use 'gloo', which every build has, or install a build that has it"
        )
    try:
        _join(config, context, backend)
    except dist.DistError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise WorkerStartError(
            f"rank {context.get_world_rank()} of {context.get_world_size()} could not join the {backend} process group "
            f"at {address} (TorchConfig.timeout_s={config.timeout_s:g}): {error}"
        ) from error
    _held.append(dist.group.WORLD)
    by_device = _by_device(backend)
    _tell_accelerate(own[0], is_gloo=by_device.get(own[0].type, by_device.get("")) == "gloo")


def _by_device(backend: str) -> dict[str, str]:
    """The backends that `cpu:gloo,cuda:nccl` names, by their devices; a single one, which is for all, by an empty name."""
    named = (each.strip().lower().rpartition(":") for each in backend.split(","))
    return {device: name for device, _, name in named}


def leave(context: TrainContext) -> None:
    """Ends the group, if it is ours: without workers the program may have had one of its own.

    Not after a failure in a group of several: what another rank never answers would be waited for, and this process
    is about to end, which closes everything.
    """
    if not dist.is_initialized() or not _held:
        return
    _held.extend(distributed_c10d._world.pg_map)
    if context.get_world_size() == 1 or sys.exc_info()[0] is None:
        dist.destroy_process_group()


def _tell_accelerate(device: torch.device, *, is_gloo: bool) -> None:
    """Has Accelerate, and so Transformers, train on this worker's device, by the variables that it reads.

    By itself it takes the GPU of the local rank's number, whose is another's where each has several. And where there is no GPU it takes
    no part in a group: it trains the whole model on each worker, without a word.
    """
    if dist.get_world_size() == 1 or (device.type == "cpu" and not is_gloo):
        return  # what it finds by itself is right, or of a kind that is not known here
    os.environ.setdefault("ACCELERATE_TORCH_DEVICE", str(device))
    if device.type == "cpu":
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def _settle_process() -> None:
    if os.getpid() != _LOADED_IN:
        torch.seed()
    # OpenMP has read its variable in the zygote, before the engine set it for this worker.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0 and int(threads) != torch.get_num_threads():
        torch.set_num_threads(int(threads))


def _join(config: TorchConfig, context: TrainContext, backend: str) -> None:
    rank, world_size = context.get_world_rank(), context.get_world_size()
    timeout = datetime.timedelta(seconds=config.timeout_s)
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    sets_interface = address in ("127.0.0.1", "localhost", "::1") and "GLOO_SOCKET_IFNAME" not in os.environ
    if sets_interface:
        # gloo would ask what the host's name resolves to, and hang or fail where it resolves to nothing.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    store: Store | None = None
    if world_size == 1:
        store = HashStore()
    elif address == "127.0.0.1" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store = _loopback_store(int(os.environ["MASTER_PORT"]), rank, world_size, timeout)
    if store is not None:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    else:
        method = "env://" if config.init_method == "env" else f"tcp://{address}:{os.environ['MASTER_PORT']}"
        dist.init_process_group(backend, init_method=method, rank=rank, world_size=world_size, timeout=timeout)
    if world_size == 1 and sets_interface:
        del os.environ[
            "GLOO_SOCKET_IFNAME"
        ]  # without workers this is the user's own program, which may want another group later
    if world_size > 1 and dist.get_backend() == "gloo":
        # Rank 0 is the first to be connected, and its store serves those that are not; a function that returns at
        # once must not take it away from them.
        dist.barrier()


def _loopback_store(port: int, rank: int, world_size: int, timeout: datetime.timedelta) -> TCPStore:
    """The rendezvous, reachable from this machine only; torch's own would listen on every interface."""
    if rank != 0:
        return TCPStore("127.0.0.1", port, world_size, False, timeout, wait_for_workers=False)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # The driver holds the port with a socket that does not listen; both allow the reuse of the address.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise WorkerStartError(
            f"rank 0 cannot listen on 127.0.0.1:{port}, the rendezvous of its group: {error}; "
            "another program took the port: fit() again"
        ) from error
    return TCPStore(
        "127.0.0.1", port, world_size, True, timeout, wait_for_workers=False, master_listen_fd=listener.detach()
    )
