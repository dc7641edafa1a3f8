"""`save_state`."""

from __future__ import annotations

import os
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from holdfast.errors import HoldfastError, StateError, StorageError
from holdfast.torch.state import buffers
from holdfast.torch.state.files import check_dtype
from holdfast.torch.state.tree import Leaf, leaves
from holdfast.torch.state.values import encode
from holdfast.torch.state.writer import Planner, ShardWriter, Values
from holdfast.worker import context
from holdfast.worker.staging_directory import is_staging

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_state(
    state: MutableMapping[str, Any], directory: str | os.PathLike[str], *, in_memory: bool | None = None
) -> None:
    """Saves a nested state into a directory to be reported, each rank its own shards only. Every rank must call it.

    The state is a dict of modules (plain, DDP, FSDP, with DTensors), their optimizers, objects with `state_dict()` and
    `load_state_dict()` (schedulers, scalers, data loaders), tensors, NumPy arrays and plain values, nested in dicts and lists.
    What all ranks have alike is saved once, so a value that differs from rank to rank needs a key of its own on each.
    Then every rank reports its directory; `load_state` resumes on any number of ranks.

    In a training function the tensors are copied into memory that the node reads from, and the directory has a link to it. That
    copy is all that training waits for, where the report is `ASYNC`:

        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_state({"model": model, "optimizer": optimizer, "epoch": epoch}, directory)
        ...     report(metrics, Checkpoint.from_directory(directory), checkpoint_upload_mode=CheckpointUploadMode.ASYNC)

    The memory is used again by later saves; it is as large as the rank's shards, once for each save that is not stored yet. It
    holds what was saved as long as the link exists or the node reads.

    Args:
        directory: Made if it is not there. The files lie in its `state`: `rank-00000.safetensors` and so on, and `values.json`.
        in_memory: Whether to use such memory; False writes files. By default it does on Linux, in a worker, unless the
            directory lies in the run's own (where files stay). Where memory is short, files are written all the same.

    Raises:
        StateError: The state holds what cannot be saved, or an optimizer without its module; the text names the key.
        StorageError: A rank could not write.
    """
    found = leaves(state, "save_state")
    gathered = _Gathered()
    for leaf in found:
        gathered.add(leaf)
    path = Path(directory).absolute()
    is_group = dist.is_available() and dist.is_initialized()
    writer = ShardWriter(path, dist.get_rank() if is_group else _worker_rank(), _pool(path, in_memory))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            save(
                gathered.tensors,
                storage_writer=writer,
                planner=Planner(gathered.values),
                no_dist=not is_group,
            )
    except CheckpointException as error:
        raise _failure(error) from error
    except OSError as error:
        raise StorageError(f"save_state could not write to {str(path)!r}: {error}") from error
    if writer.has_written and context.is_inside():
        context.current("save_state()").saved_into = str(path)


class _Gathered:
    """What is to be saved: tensors by name, and plain values by leaf."""

    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}
        self.values: Values = {}

    def add(self, leaf: Leaf) -> None:
        """Takes a leaf's parts.

        Raises:
            StateError: One cannot be saved.
        """
        match leaf.kind:
            case "module":
                value: Any = self._parts(leaf, get_model_state_dict(leaf.value))
            case "optimizer":
                assert leaf.module is not None
                value = self._parts(leaf, get_optimizer_state_dict(leaf.module, leaf.value, options=FLAT))
            case "tensor":
                self._take(leaf.path, leaf.value)
                return
            case "stateful":
                value = encode(leaf.value.state_dict(), leaf.path, self._take)
            case "plain":
                value = encode(leaf.value, leaf.path, self._take)
        self.values[leaf.path] = {"kind": leaf.kind, "value": value}

    def _parts(self, leaf: Leaf, state_dict: dict[str, Any]) -> dict[str, Any]:
        plain = {}
        for key, value in state_dict.items():
            name = f"{leaf.path}/{key}"
            if isinstance(value, torch.Tensor):
                self._take(name, value)
            else:
                plain[key] = encode(value, name, self._take)
        return plain

    def _take(self, name: str, tensor: torch.Tensor) -> str:
        check_dtype(tensor, name)
        if name in self.tensors:
            raise StateError(f"save_state: two tensors of the state are called {name!r}")
        self.tensors[name] = tensor
        return name


def _pool(directory: Path, in_memory: bool | None) -> buffers.BufferPool | None:
    if not context.is_inside() or not buffers.is_possible() or in_memory is False:
        if in_memory:
            raise StateError("save_state(in_memory=True) works only inside a training function, and on Linux")
        return None
    state = context.current("save_state()")
    run = os.path.realpath(state.job.run_url)
    place = os.path.realpath(directory)
    if in_memory is None and place.startswith(f"{run}/") and not is_staging(state, str(directory)):
        return None
    return buffers.pool_of(state)


def _worker_rank() -> int:
    return context.get_context().get_world_rank() if context.is_inside() else 0


def _failure(error: CheckpointException) -> HoldfastError:
    rank, (cause, _) = min(error.failures.items())
    if isinstance(cause, HoldfastError):
        return type(cause)(f"on rank {rank}: {cause}") if type(cause) is StateError else StorageError(str(cause))
    kind = StorageError if isinstance(cause, OSError) else StateError
    return kind(f"save_state failed on rank {rank}: {type(cause).__name__}: {cause}")
