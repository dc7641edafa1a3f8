"""Where the workers of a remote run write what they are about to report: in memory, or on this machine's disk.

The driver says where that is. In each of the two there is, below a directory of this user's::

    <run>/        the directories that workers are writing; emptied between attempts
    <run>.lock    held by the run's driver while it lives
    <run>.full    (on disk only) memory has proved too small for this run

A driver that is killed leaves them, memory included, to the next driver of any run of this user: it removes what has no
live owner.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path

from holdfast.errors import StorageError
from holdfast.persistence.file_systems import is_in_memory
from holdfast.persistence.private_place import make_private, user_place
from holdfast.stores.base import Store
from holdfast.stores.local_lock import FileLock, try_lock
from holdfast.stores.local_tree import remove_tree

_LOG = logging.getLogger("holdfast")
_PURPOSE = "staging"
_SHARED_MEMORY = "/dev/shm"
_VARIABLE = "HOLDFAST_MEMORY_DIR"
_LOCK = ".lock"
_FULL = ".full"
_LOCK_WAIT_S = 10.0
_PAUSE_S = 0.01


def is_full(disk: str) -> bool:
    """Whether memory has proved too small for the run.

    Args:
        disk: The run's place on disk.
    """
    return os.path.exists(f"{disk}{_FULL}")


def note_full(disk: str) -> None:
    """Memory was too small for what a worker wrote: until the run ends its workers write to disk."""
    with contextlib.suppress(OSError, StorageError):
        make_private(Path(disk).parent)
        Path(f"{disk}{_FULL}").touch()


class StagingPlaces:
    """A run's places as its driver holds them, from `take` to `close`.

    Attributes:
        paths: The place on disk, and the one in memory where this machine has memory for it; none for a run on a local path, which
            has its own.
    """

    def __init__(self, run: Store) -> None:
        """Finds them; nothing is there yet.

        Args:
            run: Rooted at the run's directory.
        """
        tops = [None] if (memory := _memory_top()) is None else [None, memory]
        self._all = [user_place(_PURPOSE, top) for top in tops]
        self._own = [] if run.local_path() is not None else [directory / _name(run) for directory in self._all]
        self.paths = [str(place) for place in self._own]
        self._locks: list[FileLock] = []

    def take(self) -> None:
        """Removes what dead drivers of this user left, and holds the places of this one; never raises."""
        for directory in self._all:
            _sweep(directory)
        for place in self._own:
            try:
                make_private(place.parent)
                lock = _wait_for(f"{place}{_LOCK}")
            except (OSError, StorageError) as error:
                _LOG.debug("%s is not to be used: %s", place, error)
                continue
            if lock is not None:
                self._locks.append(lock)

    def empty(self) -> None:
        """Removes what is there: no worker lives, so it will never be reported."""
        for place in self._own:
            try:
                remove_tree(str(place))
            except StorageError as error:
                _LOG.warning("%s could not be removed (%s); the next start of a run tries again", place, error)

    def close(self) -> None:
        """Removes everything of this run; safe to repeat."""
        self.empty()
        locks, self._locks = self._locks, []
        for place in self._own if locks else ():
            for ending in (_FULL, _LOCK):
                with contextlib.suppress(OSError):
                    os.unlink(f"{place}{ending}")
        for lock in locks:
            lock.release()


def _sweep(directory: Path) -> None:
    try:
        names = {entry.name.partition(".")[0] for entry in os.scandir(directory)}
    except OSError:  # nobody was ever there
        return
    for name in names:
        place = directory / name
        try:
            lock = try_lock(f"{place}{_LOCK}")
            if lock is None:
                continue
            try:
                remove_tree(str(place))
                for ending in (_FULL, _LOCK):
                    Path(f"{place}{ending}").unlink(missing_ok=True)
            finally:
                lock.release()
        except (OSError, StorageError) as error:
            _LOG.warning("%s is a left-over that could not be removed (%s); the next start tries again", place, error)


def _wait_for(path: str) -> FileLock | None:
    """The lock; None where a live driver keeps it. One that sweeps has it for as long as the sweeping takes."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while (lock := try_lock(path)) is None and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return lock


def _memory_top() -> Path | None:
    top = os.environ.get(_VARIABLE) or _SHARED_MEMORY
    try:
        return Path(top) if is_in_memory(top) and os.access(top, os.W_OK | os.X_OK) else None
    except OSError:
        return None


def _name(run: Store) -> str:
    return hashlib.sha256(run.url.encode("utf-8", "surrogateescape")).hexdigest()[:32]
