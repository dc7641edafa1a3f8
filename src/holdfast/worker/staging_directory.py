"""`staging_directory`: where a worker writes a checkpoint that is taken over instead of copied."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from holdfast.errors import ConfigurationError, StorageError
from holdfast.persistence import layout
from holdfast.persistence.private_place import make_private
from holdfast.persistence.room import free_bytes
from holdfast.persistence.staging_places import is_full, note_full
from holdfast.records import StagedShard
from holdfast.stores.local_errors import storage_error
from holdfast.stores.local_tree import make_directories, remove_tree
from holdfast.worker.context import WorkerState, current

_LOG = logging.getLogger("holdfast")
# Of the free memory, for the workers of a node together: training needs some itself, and so do checkpoints on their way.
_MEMORY_PART = 0.25
# A checkpoint is expected to be as large as the largest before, and so much more.
_GROWTH = 1.25
# With less left a file system is full, whatever error a library made of it.
_FULL_BYTES = 1 << 20


@contextlib.contextmanager
def staging_directory(size_bytes: int | None = None) -> Iterator[str]:
    """An empty directory in the best place for this run: on the file system of its storage, or in memory.

    A checkpoint made from it and reported within the block is taken over: its files are read once, and not copied on this
    machine. What is not reported is removed at the end of the block, and after a crash at the next attempt.

    Where the storage is no local path it lies in memory if the checkpoint is expected to fit into a part of what is free, and
    on this machine's disk otherwise.

    Example:
        >>> with staging_directory() as directory:
        ...     torch.save(model.state_dict(), f"{directory}/model.pt")
        ...     report({"loss": loss}, Checkpoint.from_directory(directory))

    Args:
        size_bytes: How much will be written, at most; by default it is expected to be about as much as the most that this worker
            has reported from such a directory, and the first one lies on disk.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ConfigurationError: `size_bytes` is no size.
        StorageError: It cannot be made.
    """
    state = current("staging_directory()")
    if size_bytes is not None and (isinstance(size_bytes, bool) or not isinstance(size_bytes, int) or size_bytes < 0):
        raise ConfigurationError(f"staging_directory(size_bytes=...) takes a number of bytes, not {size_bytes!r}")
    path, in_memory = _make(state, size_bytes)
    state.staging[path] = False
    try:
        yield path
    except OSError as error:
        if in_memory and error.errno == errno.ENOSPC:
            note_full(state.job.staging[0])
        raise
    finally:
        if in_memory and _has_no_room(path):
            note_full(state.job.staging[0])
        # What was handed over is the node's, which removes it after the commit; what was committed is gone already.
        if not state.staging.pop(path):
            remove_tree(path)


def is_staging(state: WorkerState, path: str) -> bool:
    """Whether a directory that is reported is such a one."""
    return os.path.abspath(path) in state.staging


def handed_over(state: WorkerState, path: str) -> None:
    """The node has the directory's files open: the directory is its own from now on, if it is such a one."""
    if path in state.staging:
        state.staging[path] = True


def remember_size(state: WorkerState, shard: StagedShard) -> None:
    """What was written into such a directory tells how much the next one needs."""
    size_bytes = sum(file.size_bytes for file in shard.files if file.source is None)
    # Small saves may lie between the large ones.
    state.staged_bytes = max(size_bytes, state.staged_bytes or 0)


def _make(state: WorkerState, size_bytes: int | None) -> tuple[str, bool]:
    """A new directory, and whether it is in memory."""
    key = layout.staging_key(state.job.attempt, state.job.rank, secrets.token_hex(8))
    if not state.job.staging:
        return _made(f"{state.job.run_url}/{key}"), False
    name = key.rpartition("/")[2]
    disk, *memory = state.job.staging
    if size_bytes is None and state.staged_bytes is not None:
        size_bytes = int(state.staged_bytes * _GROWTH)
    if size_bytes is not None and memory and not is_full(disk):
        try:
            make_private(Path(memory[0]))
            if size_bytes <= free_bytes(memory[0]) * _MEMORY_PART / max(1, state.job.local_world_size):
                return _made(f"{memory[0]}/{name}"), True
        except (OSError, StorageError) as error:
            _LOG.debug("%s is not used: %s", memory[0], error)
    make_private(Path(disk))
    return _made(f"{disk}/{name}"), False


def _made(path: str) -> str:
    try:
        make_directories(path)
    except OSError as error:
        raise storage_error("make the directory", path, error) from error
    return path


def _has_no_room(path: str) -> bool:
    try:
        there = os.statvfs(path)
    except OSError:  # it is gone: the node has removed what was committed
        return False
    # One without a limit has no size, and nothing free of it.
    return there.f_blocks > 0 and there.f_bavail * there.f_frsize < _FULL_BYTES
