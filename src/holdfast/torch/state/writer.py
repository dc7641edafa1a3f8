"""`torch.distributed.checkpoint` plans which rank writes what; this writes it, into memory or into a directory."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from holdfast.errors import StateError
from holdfast.torch.state.buffers import BufferPool
from holdfast.torch.state.files import SUFFIX, FileLayout, Piece, lay_out

DIRECTORY = "state"
VALUES = "values.json"
FORMAT_VERSION = 1

_LOG = logging.getLogger("holdfast")

# The values of a leaf that every rank has a part of are joined; of others the lowest rank's holds.
Values = dict[str, dict[str, Any]]
_JOINED = ("module", "optimizer")


class Planner(DefaultSavePlanner):
    """Torch's own plan, with each rank's plain values on board: the coordinator joins and writes them.

    Args:
        loose: The names of tensors that may differ from rank to rank although all have them, such as the running means of
            DDP: the lowest rank's are written, so that they fit each other. What else several ranks have is equal, and
            torch divides it among them.
    """

    def __init__(self, values: Values, loose: Collection[str]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._values = values
        self._loose = loose

    def create_local_plan(self) -> SavePlan:
        """What this rank could write."""
        return dataclasses.replace(super().create_local_plan(), planner_data=(self._values, frozenset(self._loose)))

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """What each rank is to write: what several have is written by one."""
        values = _join([plan.planner_data[0] for plan in all_plans])
        plans, metadata = super().create_global_plan(_without_copies(all_plans))
        # The plans need not carry them back.
        plans = [dataclasses.replace(plan, planner_data=None) for plan in plans]
        return plans, dataclasses.replace(metadata, planner_data=values)


class ShardWriter(StorageWriter):
    """Writes this rank's pieces to `<directory>/state/rank-00000.safetensors`, and on the coordinator the plain values.

    Attributes:
        written: The files that this rank wrote, below the directory.

    Args:
        directory: What will be reported.
        pool: Where buffers come from; None writes files.
    """

    def __init__(self, directory: Path, rank: int, pool: BufferPool | None) -> None:
        super().__init__()
        self._directory = directory / DIRECTORY
        self._rank = rank
        self._pool = pool
        self.written: list[str] = []

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Makes the directory, and removes what an earlier save of this rank left in it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for old in self._directory.glob(f"rank-{self._rank:05d}*{SUFFIX}"):
            old.unlink()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Copies every piece; when it returns the tensors may change."""
        results: list[WriteResult] = []
        for number, items in enumerate(_by_file(plan.items)):
            name = f"rank-{self._rank:05d}{f'-{number}' if number else ''}{SUFFIX}"
            layout = lay_out([_piece(item) for item in items])
            tensors = {item.index.fqn: _resolve(planner, item) for item in items}
            _write(layout, tensors, self._directory / name, self._pool)
            self.written.append(f"{DIRECTORY}/{name}")
            results.extend(WriteResult(item.index, _size_bytes(item), name) for item in items)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the plain values, on the coordinator; before it there is no state in the directory."""
        files = sorted({result.storage_data for of_rank in results for result in of_rank})
        # In a directory that all ranks share, an earlier save may have had more of them.
        for old in self._directory.glob(f"rank-*{SUFFIX}"):
            if old.name not in files:
                old.unlink()
        document = {"format_version": FORMAT_VERSION, "files": files, "leaves": metadata.planner_data}
        (self._directory / VALUES).write_text(json.dumps(document, separators=(",", ":")))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never asked: the writer is given."""
        return True


def _without_copies(plans: Sequence[SavePlan]) -> list[SavePlan]:
    """The plans without what a lower rank writes of the loose tensors."""
    seen: set[str] = set()
    left = []
    for plan in plans:
        # What is sharded is whole only with every rank's part of it.
        loose = {item.index.fqn for item in plan.items if item.type is WriteItemType.TENSOR} & plan.planner_data[1]
        items = [item for item in plan.items if item.index.fqn not in loose or item.index.fqn not in seen]
        seen |= loose
        left.append(dataclasses.replace(plan, items=items))
    return left


def _join(of_ranks: Sequence[Values]) -> Values:
    joined: Values = {}
    for values in of_ranks:
        for path, leaf in values.items():
            known = joined.setdefault(path, leaf)
            if known["kind"] != leaf["kind"]:
                raise StateError(
                    f"save_state: {path!r} is a {known['kind']} on one rank and a {leaf['kind']} on another; give each rank's "
                    "own a key of its own"
                )
            if known is not leaf and leaf["kind"] in _JOINED:
                joined[path] = {"kind": leaf["kind"], "value": {**leaf["value"], **known["value"]}}
    return joined


def _by_file(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """The items divided so that no file has two pieces of one tensor, which the format cannot tell apart."""
    files: list[list[WriteItem]] = []
    times: dict[str, int] = {}
    for item in items:
        number = times.get(item.index.fqn, 0)
        times[item.index.fqn] = number + 1
        if number == len(files):
            files.append([])
        files[number].append(item)
    return files


def _piece(item: WriteItem) -> Piece:
    data = item.tensor_data
    if item.type is WriteItemType.BYTE_IO or data is None:
        raise TypeError(f"{item.index.fqn!r} is no tensor")
    return Piece(item.index.fqn, tuple(data.chunk.sizes), tuple(data.chunk.offsets), data.properties.dtype)


def _resolve(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach().resolve_conj().resolve_neg()


def _size_bytes(item: WriteItem) -> int:
    return _piece(item).size_bytes


def _write(layout: FileLayout, tensors: dict[str, torch.Tensor], path: Path, pool: BufferPool | None) -> None:
    on_gpu = [tensor for tensor in tensors.values() if tensor.is_cuda]
    buffer = pool.fill(layout, path, pin=bool(on_gpu)) if pool is not None else None
    if buffer is None:
        if pool is not None:
            _LOG.warning("no memory is free for it: save_state writes %.1f GB to %s", layout.size_bytes / 1e9, path)
        _write_file(layout, tensors, path)
        return
    for piece, offset in layout.places:
        if piece.size_bytes:
            target = buffer.tensor(piece.dtype, piece.shape, offset)
            target.copy_(tensors[piece.name].view(piece.shape), non_blocking=buffer.is_pinned)
    for device in {tensor.device for tensor in on_gpu}:
        torch.cuda.current_stream(device).synchronize()
    buffer.end()


def _write_file(layout: FileLayout, tensors: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        file.write(layout.header)
        for piece, _ in layout.places:
            if piece.size_bytes:
                flat = tensors[piece.name].cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
