"""Makes files survive a loss of power."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from holdfast.stores.local_errors import storage_error

# Each fsync waits for the journal; several at once share one commit of it.
_THREADS = 8
_PARALLEL_FROM = 8
_NOT_SYNCABLE = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EROFS})


def sync_directory(directory: str, files: Sequence[str]) -> None:
    """Makes files below `directory`, the directories between, and the directory with its own entry durable.

    Files come before the directories that name them, so that after a crash no durable name lacks its content.

    Raises:
        StorageError: The disk refused; what was to become durable may not be.
    """
    if len(files) < _PARALLEL_FROM:
        for path in files:
            _sync_path(path)
    else:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="holdfast-sync") as pool:
            for _ in pool.map(_sync_path, files):
                pass
    for path in _directories(directory, files):
        _sync_path(path)


def _directories(directory: str, files: Sequence[str]) -> list[str]:
    """The directories that name the files, deepest first, then `directory` and the one that names it."""
    between = set()
    for path in files:
        parent = os.path.dirname(path)
        while len(parent) > len(directory) and parent not in between:
            between.add(parent)
            parent = os.path.dirname(parent)
    return [*sorted(between, key=len, reverse=True), directory, os.path.dirname(directory)]


def _sync_path(path: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # a symbolic link: it lies in its directory's bytes
            return
        if error.errno == errno.EACCES:  # a mode without read permission: only the whole disk can be asked
            os.sync()
            return
        raise storage_error("make durable", path, error) from error
    try:
        _full_sync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCABLE:  # some file systems cannot sync directories, and need not
            raise storage_error("make durable", path, error) from error
    finally:
        os.close(descriptor)


if sys.platform == "darwin":
    import fcntl

    def _full_sync(descriptor: int) -> None:
        # macOS's fsync leaves the bytes in the drive's cache.
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:  # network mounts and directories do not take it
            os.fsync(descriptor)

else:

    def _full_sync(descriptor: int) -> None:
        os.fsync(descriptor)
