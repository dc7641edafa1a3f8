"""Writes what was planned, into memory or into a directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.planner import WriteItem

from holdfast.errors import StateError
from holdfast.torch.state.buffers import BufferPool
from holdfast.torch.state.copying import PlainCopy, copy_all, is_plain
from holdfast.torch.state.files import SUFFIX, FileLayout, Piece
from holdfast.torch.state.plans import Plan

DIRECTORY = "state"
VALUES = "values.json"
FORMAT_VERSION = 1

_LOG = logging.getLogger("holdfast")

# The values of a leaf that every rank has a part of are joined; of others the lowest rank's holds.
Values = dict[str, dict[str, Any]]
_JOINED = ("module", "optimizer")


class ShardWriter:
    """Writes this rank's pieces to `<directory>/state/rank-00000.safetensors`, and on the first rank the plain values.

    Args:
        directory: What will be reported.
        pool: Where buffers come from; None writes files.
    """

    def __init__(self, directory: Path, rank: int, pool: BufferPool | None) -> None:
        self._directory = directory / DIRECTORY
        self._rank = rank
        self._pool = pool

    def begin(self) -> None:
        """What an earlier save left in the directory is no state any more; before any rank writes.

        Raises:
            OSError: The directory cannot be written to.
        """
        if self._rank == 0:
            (self._directory / VALUES).unlink(missing_ok=True)

    def write_tensors(self, plan: Plan, resolve: Callable[[WriteItem], torch.Tensor]) -> list[str]:
        """Copies every piece; when it returns the tensors may change.

        Returns:
            The files, below the directory.

        Raises:
            StateError: A tensor is not what was planned.
            OSError: A file cannot be written.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for old in self._directory.glob(f"rank-{self._rank:05d}*{SUFFIX}"):
            old.unlink()
        for file in plan.files:
            tensors = {name: resolve(item) for name, item in file.items.items()}
            for piece, _ in file.layout.places:
                _check(piece, tensors[piece.name])
            _write(file.layout, tensors, self._directory / file.name, self._pool)
        return [f"{DIRECTORY}/{file.name}" for file in plan.files]

    def finish(self, files: Sequence[str], values: Sequence[Values]) -> None:
        """Writes the plain values of all ranks; before it there is no state in the directory.

        Args:
            files: What all ranks wrote.

        Raises:
            StateError: The values of two ranks do not fit each other.
            OSError: They cannot be written.
        """
        names = sorted(file.removeprefix(f"{DIRECTORY}/") for file in files)
        # In a directory that all ranks share, an earlier save may have had more of them.
        for old in self._directory.glob(f"rank-*{SUFFIX}"):
            if old.name not in names:
                old.unlink()
        document = {"format_version": FORMAT_VERSION, "files": names, "leaves": _join(values)}
        (self._directory / VALUES).write_text(json.dumps(document, separators=(",", ":")))


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


def _check(piece: Piece, tensor: torch.Tensor) -> None:
    """The plan goes by what a tensor says of itself; what this rank has of it decides how many bytes are read.

    Raises:
        StateError: It is another.
    """
    if tensor.dtype != piece.dtype or tensor.numel() * tensor.itemsize != piece.size_bytes:
        raise StateError(
            f"save_state: this rank's part of {piece.name!r} is {tuple(tensor.shape)} of {tensor.dtype}, and should be "
            f"{piece.shape} of {piece.dtype} by what the whole tensor says of itself"
        )


def _write(layout: FileLayout, tensors: Mapping[str, torch.Tensor], path: Path, pool: BufferPool | None) -> None:
    on_gpu = [tensor for tensor in tensors.values() if tensor.is_cuda]
    buffer = pool.fill(layout, path, pin=bool(on_gpu)) if pool is not None else None
    if buffer is None:
        if pool is not None:
            _LOG.warning("no memory is free for it: save_state writes %.1f GB to %s", layout.size_bytes / 1e9, path)
        _write_file(layout, tensors, path)
        return
    plain = []
    address = buffer.address()
    for piece, offset in layout.places:
        if size_bytes := piece.size_bytes:
            tensor = tensors[piece.name]
            if is_plain(tensor):
                plain.append(PlainCopy(address + offset, tensor.data_ptr(), size_bytes))
            else:
                target = buffer.tensor(piece.dtype, piece.shape, offset)
                target.copy_(tensor.view(piece.shape), non_blocking=buffer.is_pinned)
    copy_all(plain)
    for device in {tensor.device for tensor in on_gpu}:
        torch.cuda.current_stream(device).synchronize()
    buffer.end()


def _write_file(layout: FileLayout, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        file.write(layout.header)
        for piece, _ in layout.places:
            if piece.size_bytes:
                flat = tensors[piece.name].cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
