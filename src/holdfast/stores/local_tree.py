"""Listing and removing directories that others may be removing at the same time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from holdfast.stores.base import StoreEntry
from holdfast.stores.local_errors import storage_error

_REMOVE_ATTEMPTS = 5


def list_tree(path: str, key: str, *, recursive: bool) -> Iterator[StoreEntry]:
    """The entries of a directory; what vanishes meanwhile is left out.

    Args:
        key: What the entries' keys begin with.
    """
    todo = [(path, f"{key}/" if key else "")]
    while todo:
        directory, prefix = todo.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    found = _entry(entry, prefix)
                    if found is None:
                        continue
                    if recursive and found.is_directory:
                        todo.append((entry.path, f"{found.key}/"))
                    else:
                        yield found
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise storage_error("list", directory, error) from error


def _entry(entry: os.DirEntry[str], prefix: str) -> StoreEntry | None:
    try:
        status = entry.stat(follow_symlinks=False)
        is_directory = entry.is_dir(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return StoreEntry(
        key=prefix + entry.name,
        size_bytes=0 if is_directory else status.st_size,
        is_directory=is_directory,
        mtime_s=status.st_mtime,
    )


def make_directories(path: str) -> None:
    """Makes a directory and its missing parents, however many (`os.makedirs` recurses); safe against others' doing so.

    Raises:
        OSError: As `os.makedirs(path, exist_ok=True)`.
    """
    missing = []
    while not _make_directory(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        if not _make_directory(directory):
            raise FileNotFoundError(errno.ENOENT, "its parent was removed meanwhile", directory)


def _make_directory(path: str) -> bool:
    """False where the parent is missing."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    except FileNotFoundError:
        return False
    return True


def remove_tree(path: str) -> None:
    """Removes a directory (or a file) and all below it, whatever part of it is gone already.

    Raises:
        StorageError: Something resisted; the rest may be gone.
    """
    for attempt in range(_REMOVE_ATTEMPTS):
        try:
            _remove_once(path)
            return
        except OSError as error:
            # Somebody put a file into a directory that had just been emptied: go through it again.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and attempt + 1 < _REMOVE_ATTEMPTS:
                continue
            raise storage_error("remove", error.filename or path, error) from error


def _remove_once(path: str) -> None:
    # Iterative: a tree may be deeper than Python's stack.
    directories = [path]
    for directory in directories:
        try:
            with os.scandir(directory) as scan:
                entries = list(scan)
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            _remove(os.unlink, directory)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.path)
            else:
                _remove(os.unlink, entry.path)
    for directory in reversed(directories):
        _remove(os.rmdir, directory)


def _remove(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except (FileNotFoundError, NotADirectoryError):
        return
