"""Locks that the kernel takes back when their process dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from types import TracebackType

from holdfast.stores.base import UNKNOWN_HOLDER, StoreLock
from holdfast.stores.local_errors import storage_error

_STALE_TEXT_WAIT_S = 0.2
_MAX_TEXT_BYTES = 4096

# Descriptors are shared with forked children, and with them the lock: a child that outlives a killed driver would
# keep the run locked. So children close theirs first thing, which leaves the parent's lock alone. The guard is held
# across a fork, so that none can fall between the opening of a file and its entry here.
_held: set[FileLock] = set()
_held_guard = threading.RLock()


class FileLock(StoreLock):
    """A lock (`flock`) on an open file; it belongs to the process that took it, never to its forked children."""

    def __init__(self, path: str) -> None:
        """Opens the file, made where missing; it is not locked yet."""
        self._has_text = False
        with _held_guard:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _held.add(self)

    def try_lock(self, *, shared: bool) -> bool:
        """Locks without waiting; False where another holder is in the way."""
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def is_at(self, path: str) -> bool:
        """Whether the file at `path` is the one that was opened."""
        try:
            there = os.stat(path)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    @property
    def is_held(self) -> bool:
        """Whether this process still holds it."""
        return self._descriptor >= 0

    def write_text(self, text: str) -> None:
        """Puts a text into the locked file, in place of what an earlier holder left."""
        data = text.encode("utf-8", "surrogateescape")[:_MAX_TEXT_BYTES]
        # A death between the two leaves an empty text, which readers take for "did not say".
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)
        self._has_text = True

    def release(self) -> None:
        """Unlocks and closes; in a forked child there is nothing to give back."""
        with _held_guard:
            descriptor, self._descriptor = self._descriptor, -1
            _held.discard(self)
        if descriptor < 0:
            return
        try:
            if self._has_text:
                # The next holder is not this one, whoever reads before it has written its own name.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, 0)
            # Unlocks for every copy of the descriptor, also one in a child that forked without Python's knowledge.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _forget_in_child() -> None:
    for lock in _held:
        descriptor, lock._descriptor = lock._descriptor, -1
        os.close(descriptor)
    _held.clear()
    _held_guard.release()


os.register_at_fork(before=_held_guard.acquire, after_in_parent=_held_guard.release, after_in_child=_forget_in_child)


def try_lock(path: str, *, shared: bool = False) -> FileLock | None:
    """Locks a file, made where missing, without waiting.

    Returns:
        None where another holder is in the way.

    Raises:
        OSError: The file cannot be opened, or its file system has no locks.
    """
    while True:
        lock = FileLock(path)
        try:
            if not lock.try_lock(shared=shared):
                lock.release()
                return None
            if lock.is_at(path):
                return lock
        except BaseException:
            lock.release()
            raise
        lock.release()  # the file was removed between opening and locking: nobody else will look at this one


def take_lock(path: str, description: str) -> FileLock | str:
    """Locks a file and says in it who did; see `Store.lock`.

    Raises:
        StorageError: The file cannot be opened or locked.
    """
    deadline = time.monotonic() + _STALE_TEXT_WAIT_S
    while True:
        try:
            lock = try_lock(path)
            if lock is not None:
                lock.write_text(f"{os.getpid()}@{os.uname().nodename}\n{description}\n")
                return lock
            holder, text = _read_text(path)
        except OSError as error:
            raise storage_error("lock", path, error) from error
        if text and not _is_dead(holder):
            return text
        # The holder has the lock and has not written its name yet, or died this instant: what the file says is
        # of an earlier holder. Both last microseconds.
        if time.monotonic() >= deadline:
            return text or UNKNOWN_HOLDER
        time.sleep(0.005)


def _read_text(path: str) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_TEXT_BYTES).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return "", ""
    holder, _, description = text.partition("\n")
    return holder, description.removesuffix("\n")


def _is_dead(holder: str) -> bool:
    """Whether the `pid@host` at the head of a lock's text is known to be gone (unknown: no)."""
    pid, _, host = holder.partition("@")
    if host != os.uname().nodename or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
