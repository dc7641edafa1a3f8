"""`save_state`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from holdfast.errors import StateError
from holdfast.torch.state import buffers
from holdfast.torch.state.files import check_dtype
from holdfast.torch.state.optimizers import gather, parameter_names
from holdfast.torch.state.plans import Form, Plan, form_of, known_plan, plan_together, resolver
from holdfast.torch.state.together import Together
from holdfast.torch.state.tree import Leaf, leaves
from holdfast.torch.state.values import encode
from holdfast.torch.state.writer import DIRECTORY, ShardWriter, Values
from holdfast.worker import context
from holdfast.worker.staging_directory import is_staging


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
        in_memory: Whether to use such memory; False writes files. By default it is used on Linux, in a worker, for a
            `staging_directory` and for what lies where temporary files go; elsewhere files are meant to stay. Where memory is short,
            files are written all the same.

    Raises:
        StateError: The state holds what cannot be saved, or an optimizer without its module; the text names the key.
        StorageError: A rank could not write.
    """
    together = Together()
    if not together.is_group and context.is_inside() and context.get_context().get_world_size() > 1:
        raise StateError(
            "save_state: these workers have no process group, which tells who saves what; use TorchTrainer, or call "
            "torch.distributed.init_process_group() first"
        )
    prepared: list[_Prepared] = []

    def prepare() -> str | None:
        prepared.append(_prepare(state, directory, in_memory, together))
        known = known_plan(prepared[0].form)
        return known.id if known is not None else None

    ids = set(together.agree(prepare))
    (ready,) = prepared
    gathered, writer = ready.gathered, ready.writer
    known = known_plan(ready.form)
    if known is not None and ids == {known.id}:
        plan: Plan = known
    else:
        plan = plan_together(ready.form, gathered.tensors, gathered.loose, together)

    def write() -> tuple[list[str], Values]:
        return writer.write_tensors(plan, resolver(gathered.tensors)), gathered.values

    def finish(of_ranks: list[tuple[list[str], Values]]) -> list[None]:
        writer.finish([file for files, _ in of_ranks for file in files], [values for _, values in of_ranks])
        return [None] * len(of_ranks)

    together.step(write, finish)
    if plan.files and context.is_inside():
        state_of_worker = context.current("save_state()")
        state_of_worker.saved_into = str(ready.path)
        state_of_worker.saved_files = tuple(f"{DIRECTORY}/{file.name}" for file in plan.files)


@dataclass(frozen=True)
class _Prepared:
    """What a rank has to save, and where."""

    gathered: _Gathered
    form: Form
    path: Path
    writer: ShardWriter


def _prepare(
    state: MutableMapping[str, Any],
    directory: str | os.PathLike[str],
    in_memory: bool | None,
    together: Together,
) -> _Prepared:
    gathered = _Gathered()
    for leaf in leaves(state, "save_state"):
        gathered.add(leaf)
    if not isinstance(directory, str | os.PathLike):
        raise StateError(f"save_state takes the directory to save into, not {directory!r}")
    path = Path(directory).absolute()
    writer = ShardWriter(path, together.rank, _pool(path, in_memory))
    form = form_of(gathered.tensors, gathered.loose, together)
    # Dead from here on, on any rank: what the directory held is no state any more, and never a mix of two.
    writer.begin()
    return _Prepared(gathered, form, path, writer)


class _Gathered:
    """What is to be saved.

    Attributes:
        tensors: By name.
        values: The plain ones, by leaf.
        loose: The names of tensors that may differ from rank to rank.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}
        self.values: Values = {}
        self.loose: set[str] = set()

    def add(self, leaf: Leaf) -> None:
        """Takes a leaf's parts.

        Raises:
            StateError: One cannot be saved.
        """
        match leaf.kind:
            case "module":
                parameters = set(parameter_names(leaf.value).values())
                state = get_model_state_dict(leaf.value)
                value: Any = self._parts(leaf, state)
                self.loose.update(f"{leaf.path}/{key}" for key in state if key not in parameters)
            case "optimizer":
                assert leaf.module is not None
                value = self._parts(leaf, gather(leaf.module, leaf.value))
            case "tensor":
                self._take(leaf.path, leaf.value)
                self.loose.add(leaf.path)
                return
            case "stateful":
                value = encode(leaf.value.state_dict(), leaf.path, self._take_loose)
            case "plain":
                value = encode(leaf.value, leaf.path, self._take_loose)
        self.values[leaf.path] = {"kind": leaf.kind, "value": value}

    def _parts(self, leaf: Leaf, state_dict: dict[str, Any]) -> dict[str, Any]:
        plain = {}
        for key, value in state_dict.items():
            name = f"{leaf.path}/{key}"
            if isinstance(value, torch.Tensor):
                self._take(name, value)
            else:
                plain[key] = encode(value, name, self._take_loose)
        return plain

    def _take(self, name: str, tensor: torch.Tensor) -> str:
        check_dtype(tensor, name)
        if name in self.tensors:
            raise StateError(f"save_state: two tensors of the state are called {name!r}")
        self.tensors[name] = tensor
        return name

    def _take_loose(self, name: str, tensor: torch.Tensor) -> str:
        self.loose.add(name)
        return self._take(name, tensor)


def _pool(directory: Path, in_memory: bool | None) -> buffers.BufferPool | None:
    if not context.is_inside() or not buffers.is_possible() or in_memory is False:
        if in_memory:
            raise StateError("save_state(in_memory=True) works only inside a training function, and on Linux")
        return None
    state = context.current("save_state()")
    # Elsewhere whoever saves may mean the files to stay, which memory does not.
    temporary = os.path.realpath(tempfile.gettempdir())
    is_temporary = os.path.realpath(directory).startswith(f"{temporary}/") or is_staging(state, str(directory))
    run = os.path.realpath(state.job.run_url)
    is_in_run = os.path.realpath(directory).startswith(f"{run}/") and not is_staging(state, str(directory))
    return buffers.pool_of(state) if in_memory or (is_temporary and not is_in_run) else None
