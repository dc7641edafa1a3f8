"""`staging_directory`: where a worker writes a checkpoint that is taken over instead of copied."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from holdfast.persistence import layout
from holdfast.persistence.private_place import make_private, staging_place
from holdfast.stores.local_errors import storage_error
from holdfast.stores.local_tree import make_directories, remove_tree
from holdfast.worker.context import WorkerState, current


@contextlib.contextmanager
def staging_directory() -> Iterator[str]:
    """An empty directory on the file system of the run's storage; on this machine's own where that is no local path.

    A checkpoint made from it and reported within the block is taken over: its files are read once, and not copied on this
    machine. What is not reported is removed at the end of the block, and after a crash at the next attempt.

    Example:
        >>> with staging_directory() as directory:
        ...     torch.save(model.state_dict(), f"{directory}/model.pt")
        ...     report({"loss": loss}, Checkpoint.from_directory(directory))

    Raises:
        OutsideWorkerError: Called outside a training function.
        StorageError: It cannot be made.
    """
    state = current("staging_directory()")
    key = layout.staging_key(state.job.attempt, state.job.rank, secrets.token_hex(8))
    place = staging_place(state.run)
    path = f"{state.job.run_url}/{key}" if place is None else f"{place}/{key.rpartition('/')[2]}"
    if place is not None:
        make_private(place)
    try:
        make_directories(path)
    except OSError as error:
        raise storage_error("make the directory", path, error) from error
    state.staging[path] = False
    try:
        yield path
    finally:
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
