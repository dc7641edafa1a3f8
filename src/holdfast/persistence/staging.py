"""Looks at the directory that a worker reports: what is in it, and whether it can be stored.

No file is opened. What is recorded of each (size, times) shows later that it was not modified before its bytes
were stored.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import msgspec

from holdfast.errors import CheckpointSourceError, FormatError, ShardModifiedError
from holdfast.persistence import layout
from holdfast.persistence.links import stays_inside
from holdfast.persistence.manifest import decode_manifest
from holdfast.persistence.sources import open_file_of
from holdfast.records import StagedFile, StagedShard

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def stage(directory: str | os.PathLike[str], rank: int, *, adopt: bool = False, remove: bool = False) -> StagedShard:
    """Lists a directory for upload; its files must then stay as they are until they are stored.

    Args:
        rank: World rank of the worker that reports it.
        adopt: The files may be taken over instead of copied.
        remove: The directory is removed after the commit.

    Raises:
        CheckpointSourceError: The directory is missing or a file, or holds something that cannot be stored: a link
            that leads out of it, a pipe, a socket, a device, a name of Holdfast's own.
        ShardModifiedError: Something in it vanished meanwhile.
    """
    root = check_directory(directory)
    special: dict[str, os.stat_result] = {}
    links: dict[str, str] = {}
    times_ns: dict[str, int] = {}
    files = []
    for path, status in _walk(root, special):
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            files.append(
                StagedFile(
                    path=layout.encode_path(path),
                    size_bytes=status.st_size,
                    mode=status.st_mode & 0o7777,
                    mtime_ns=status.st_mtime_ns,
                    ctime_ns=status.st_ctime_ns,
                    num_links=status.st_nlink,
                )
            )
        elif kind == stat.S_IFDIR:
            mode = status.st_mode & 0o7777
            files.append(StagedFile(path=layout.encode_path(path), kind="directory", mode=mode))
        elif kind == stat.S_IFLNK:
            if (held := _held_open(root, path)) is not None:
                # In a directory that ranks share, each reports its own memory, and not that of one which may end at any moment.
                if held.source is not None and held.source.startswith(f"/proc/{os.getpid()}/"):
                    files.append(held)
                continue
            links[path] = _link_target(root, path)
            times_ns[path] = status.st_mtime_ns
        else:
            raise CheckpointSourceError(
                f"{os.path.join(root, path)!r} is {_KINDS.get(kind, 'no regular file')}, which a checkpoint cannot "
                f"hold; remove it from the directory before the report"
            )
    files.extend(_staged_links(root, links, times_ns))
    files.sort(key=lambda file: file.path)
    _check_manifest(root, special.get(layout.MANIFEST))
    metadata = _read_metadata(root, special.get(layout.METADATA))
    return StagedShard(
        rank=rank,
        root=layout.encode_path(root),
        files=tuple(files),
        adopt=adopt,
        remove=remove,
        metadata=metadata,
    )


def check_directory(directory: str | os.PathLike[str]) -> str:
    """The absolute path of a directory that is reported.

    Raises:
        CheckpointSourceError: There is none.
    """
    root = os.path.abspath(os.fsdecode(directory))
    if os.path.isdir(root):
        return root
    if os.path.lexists(root):
        raise CheckpointSourceError(
            f"The checkpoint {root!r} is no directory; report the directory that holds the file"
        )
    raise CheckpointSourceError(
        f"The checkpoint directory {root!r} does not exist; if it was temporary, report before it is removed"
    )


def _walk(root: str, special: dict[str, os.stat_result]) -> Iterator[tuple[str, os.stat_result]]:
    """Relative paths with their status: all but directories with something in them; ours at the top go to `special`."""
    todo: list[tuple[str, str, os.stat_result | None]] = [(root, "", None)]
    while todo:
        directory, prefix, own = todo.pop()
        is_empty = True
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    is_empty = False
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        todo.append((entry.path, f"{prefix}{entry.name}/", status))
                    elif not prefix and entry.name in (layout.MANIFEST, layout.METADATA):
                        special[entry.name] = status
                    else:
                        yield prefix + entry.name, status
        except FileNotFoundError as error:
            raise ShardModifiedError(
                f"{error.filename!r} vanished while the checkpoint {root!r} was being reported; "
                f"leave the directory alone until `report` has returned"
            ) from error
        except OSError as error:
            raise CheckpointSourceError(f"Cannot list {directory!r}: {os.strerror(error.errno or 0)}") from error
        if is_empty and own is not None:
            yield prefix[:-1], own


def _held_open(root: str, path: str) -> StagedFile | None:
    """The file that a link stands for which leads to what a process has open: its bytes are the checkpoint's."""
    try:
        found = open_file_of(os.path.join(root, path))
    except OSError as error:
        raise _let_go(os.path.join(root, path)) from error
    if found is None:
        return None
    target, status = found
    # By this a link that was left from an earlier use of the same memory is told from one that is meant.
    if os.lstat(os.path.join(root, path)).st_mtime_ns != status.st_mtime_ns:
        raise _let_go(os.path.join(root, path))
    return StagedFile(
        path=layout.encode_path(path),
        size_bytes=status.st_size,
        mode=status.st_mode & 0o7777,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        num_links=status.st_nlink,
        source=target,
    )


def _let_go(link: str) -> ShardModifiedError:
    return ShardModifiedError(
        f"The link {link!r} leads to memory that its process has let go of, or uses for something else by now; report the "
        "directory itself that was saved into, before its process ends, or save files: save_state(..., in_memory=False)"
    )


def _link_target(root: str, path: str) -> str:
    """Where a link points, relative to its own directory, an absolute target inside the root included."""
    try:
        target = os.readlink(os.path.join(root, path))
    except OSError as error:
        raise ShardModifiedError(
            f"The link {os.path.join(root, path)!r} changed while it was being reported"
        ) from error
    if not target.startswith("/"):
        return target
    for top in (root, os.path.realpath(root)):
        if target == top or target.startswith(f"{top}/"):
            return "../" * path.count("/") + (target[len(top) :].lstrip("/") or ".")
    return target


def _staged_links(root: str, links: dict[str, str], times_ns: dict[str, int]) -> Iterator[StagedFile]:
    for path, target in links.items():
        if not stays_inside(path, links):
            raise CheckpointSourceError(
                f"The link {os.path.join(root, path)!r} to {target!r} leads out of the checkpoint, where nothing "
                f"would be stored; copy what it points to into the directory"
            )
        yield StagedFile(
            path=layout.encode_path(path),
            kind="symlink",
            mode=0o777,
            mtime_ns=times_ns[path],
            target=layout.encode_path(target),
        )


def _check_manifest(root: str, status: os.stat_result | None) -> None:
    """A manifest of ours at the top is that of a restored checkpoint, reported again: it gets a new one."""
    if status is None:
        return
    path = os.path.join(root, layout.MANIFEST)
    try:
        decode_manifest(_read_small(path, status), path)
    except FormatError as error:
        raise CheckpointSourceError(
            f"{path!r} has a name that Holdfast needs for itself and is no manifest; rename it before the report"
        ) from error


def _read_metadata(root: str, status: os.stat_result | None) -> str | None:
    if status is None:
        return None
    path = os.path.join(root, layout.METADATA)
    data = _read_small(path, status)
    problem = ""
    try:
        found: Any = msgspec.json.decode(data)
        if not isinstance(found, dict):
            problem = f"it holds a {type(found).__name__}"
    except (msgspec.DecodeError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise CheckpointSourceError(
            f"{path!r} is where a checkpoint's metadata lies, and is no JSON object ({problem}); "
            f"use `Checkpoint.set_metadata`, or rename the file"
        )
    return data.decode()


def _read_small(path: str, status: os.stat_result) -> bytes:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointSourceError(f"{path!r} has a name that Holdfast needs for itself, and is no regular file")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CheckpointSourceError(f"Cannot read {path!r}: {os.strerror(error.errno or 0)}") from error
