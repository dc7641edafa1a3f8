"""Where the workers of a remote run write what they are about to report: in memory, or on this machine's disk.

The driver says where that is. In each of the two there is, below a directory of this user's::

    <machine>-<random>/        the directories that workers of one driver are writing; emptied between attempts
    <machine>-<random>.lock    held by that driver while it lives
    <machine>-<random>.full    (on disk only) memory has proved too small for its run

A driver that is killed leaves them, memory included, to the next driver of any run of this user on this machine: it removes
what has no live owner. Machines may share a directory for temporary files and yet not see each other's locks, so there
each keeps to its own places.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from pathlib import Path

from holdfast.errors import StorageError
from holdfast.persistence.file_systems import is_in_memory, is_of_one_machine
from holdfast.persistence.machine import machine_id
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


def is_full(disk: str) -> bool:
    """Whether memory has proved too small for the run.

    Args:
        disk: The place on disk of the run's driver.
    """
    return os.path.exists(f"{disk}{_FULL}")


def note_full(disk: str) -> None:
    """Memory was too small for what a worker wrote: until the run ends its workers write to disk."""
    with contextlib.suppress(OSError, StorageError):
        make_private(Path(disk).parent)
        Path(f"{disk}{_FULL}").touch()


class StagingPlaces:
    """The places of a run's driver, and no other's, from `take` to `close`.

    Attributes:
        paths: The place on disk, and the one in memory where this machine has memory for it; none before `take`, and none for a
            run on a local path, which has its own.
    """

    def __init__(self, run: Store) -> None:
        """Finds out where they would be; nothing is there yet.

        Args:
            run: Rooted at the run's directory.
        """
        self._disk = user_place(_PURPOSE)
        self._memory = None if (memory := _memory_top()) is None else user_place(_PURPOSE, memory)
        self._is_needed = run.local_path() is None
        self.paths: list[str] = []
        self._locks: dict[str, FileLock] = {}

    def take(self) -> None:
        """Removes what dead drivers of this user left, and makes new places for this one; never raises."""
        for directory in (self._disk, self._memory):
            if directory is not None:
                _sweep(directory)
        if self._is_needed:
            if (chosen := os.environ.get(_VARIABLE)) and (problem := _problem_with(chosen)) is not None:
                _LOG.warning(
                    "%s=%s %s: staging_directory() writes to disk; name a directory of a tmpfs that you may write to",
                    _VARIABLE,
                    chosen,
                    problem,
                )
            # Where the disk is not to be used, the worker that needs it says why.
            self.paths = [self._new(self._disk) or f"{self._disk}/{_new_name()}"]
            if self._memory is not None and (place := self._new(self._memory)) is not None:
                self.paths.append(place)

    def empty(self) -> None:
        """Removes what is there: no worker lives, so it will never be reported."""
        for place, lock in self._locks.items():
            if not lock.is_held:  # a forked child's copy of this object: the places are its parent's
                continue
            try:
                remove_tree(place)
            except StorageError as error:
                _LOG.warning("%s could not be removed (%s); the next start of a run tries again", place, error)

    def close(self) -> None:
        """Removes everything of this driver; safe to repeat."""
        self.empty()
        locks, self._locks = self._locks, {}
        for place, lock in locks.items():
            for ending in (_FULL, _LOCK) if lock.is_held else ():
                with contextlib.suppress(OSError):
                    os.unlink(f"{place}{ending}")
            lock.release()

    def _new(self, directory: Path) -> str | None:
        while True:
            place = f"{directory}/{_new_name()}"
            try:
                make_private(directory)
                lock = try_lock(f"{place}{_LOCK}")
            except (OSError, StorageError) as error:
                _LOG.debug("%s is not to be used: %s", directory, error)
                with contextlib.suppress(OSError):  # made, where the file system has no locks
                    os.unlink(f"{place}{_LOCK}")
                return None
            # Somebody who sweeps may have found the file before it was locked: then another name will do.
            if lock is not None:
                self._locks[place] = lock
                return place


def _sweep(directory: Path) -> None:
    try:
        names = {entry.name.partition(".")[0] for entry in os.scandir(directory)}
        if not is_of_one_machine(str(directory)):
            names = {name for name in names if name.startswith(_prefix())}
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


def _memory_top() -> Path | None:
    top = os.environ.get(_VARIABLE) or _SHARED_MEMORY
    return Path(top) if _problem_with(top) is None else None


def _problem_with(top: str) -> str | None:
    """Why a directory is no place for staging in memory; None where it is one."""
    try:
        is_memory = is_in_memory(top)
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    if not os.path.isdir(top):
        return "is no directory"
    if not is_memory:
        return "is not in memory, as far as the system says"
    return None if os.access(top, os.W_OK | os.X_OK) else "cannot be written to"


def _prefix() -> str:
    return f"{hashlib.sha256(machine_id().encode()).hexdigest()[:16]}-"


def _new_name() -> str:
    return f"{_prefix()}{secrets.token_hex(16)}"
