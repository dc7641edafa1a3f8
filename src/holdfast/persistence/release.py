"""Removes the directories that workers gave away, once their files are in a checkpoint."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from holdfast.persistence import layout
from holdfast.records import StagedFile, StagedShard

_LOG = logging.getLogger("holdfast")


def release(shards: Sequence[StagedShard]) -> None:
    """Removes what was staged of the shards that were given away; never raises.

    Only files that still are what was stored: after an asynchronous report the worker may have begun to write its
    next checkpoint into a directory of the same name.
    """
    for shard in shards:
        if shard.remove:
            _release(shard)


def changed_while_shared(shard: StagedShard, place: str) -> str | None:
    """A file that was taken over by a hard link, and written to since by its old name; None where there is none.

    Args:
        place: Where the shard's files were stored.
    """
    root = layout.decode_path(shard.root)
    for file in shard.files if shard.adopt else ():
        path = layout.decode_path(file.path)
        if file.kind != "file":
            continue
        try:
            old, new = os.lstat(f"{root}/{path}"), os.lstat(f"{place}/{path}")
        except OSError:  # without its old name nobody finds it
            continue
        is_same = (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino)
        if is_same and (new.st_size, new.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
            return f"{root}/{path}"
    return None


def _release(shard: StagedShard) -> None:
    root = layout.decode_path(shard.root)
    directories: set[str] = set()
    try:
        for file in shard.files:
            path = f"{root}/{layout.decode_path(file.path)}"
            if file.kind == "directory":
                directories.add(path)
                continue
            if file.source is None:
                _remove_if_same(path, file)
            else:
                _remove_link(path, file)
            parent = os.path.dirname(path)
            while len(parent) > len(root) and parent not in directories:
                directories.add(parent)
                parent = os.path.dirname(parent)
        for directory in sorted(directories, key=len, reverse=True):
            _remove_if_empty(directory)
        _remove_own_records(root)
        _remove_if_empty(root)
    except OSError as error:
        _LOG.warning("The directory %r of a stored checkpoint could not be removed: %s", root, error)


def _remove_if_same(path: str, file: StagedFile) -> None:
    try:
        status = os.lstat(path)
        if status.st_mtime_ns == file.mtime_ns and (file.kind == "symlink" or status.st_size == file.size_bytes):
            os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return


def _remove_link(path: str, file: StagedFile) -> None:
    try:
        # A later save into the same directory may have made another link to the same memory, with another time.
        is_same = os.lstat(path).st_mtime_ns == file.mtime_ns and os.readlink(path) == layout.decode_path(
            file.source or ""
        )
        if is_same:
            os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if error.errno != errno.EINVAL:  # no link: by now it is another file
            raise


def _remove_own_records(root: str) -> None:
    """The manifest that a restored checkpoint brought along, and the metadata, if nothing else is left there."""
    try:
        left = set(os.listdir(root))
    except (FileNotFoundError, NotADirectoryError):
        return
    if left <= {layout.MANIFEST, layout.METADATA}:
        for name in left:
            os.unlink(f"{root}/{name}")


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:  # not empty, or gone: then it is somebody's, or nobody's
        return
