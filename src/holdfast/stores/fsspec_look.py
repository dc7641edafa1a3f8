"""What lies under a name in a file system of fsspec."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from holdfast.errors import StoreNotFoundError
from holdfast.stores.fsspec_connection import Connection

# Under which name an entry has the time of its last change: each file system has its own. That of its making comes last.
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "modificationTime", "created")


def path_of(connection: Connection, name: str) -> str:
    """A name below the root as the file system has it."""
    root = connection.root
    if root:
        return f"{root}/{name}" if name else root
    marker = connection.root_marker
    return f"{marker}{name}" if name else marker


def look(connection: Connection, name: str) -> Mapping[str, Any] | None:
    """What fsspec says of a name; None where nothing is there. One request.

    Raises:
        StorageError: The file system did not say.
    """
    path = path_of(connection, name)

    def ask(filesystem: Any) -> Mapping[str, Any]:
        # Many remember what they have listed, for as long as they live; others write here, too.
        filesystem.invalidate_cache()
        found: Mapping[str, Any] = filesystem.info(path)
        return found

    try:
        return connection.call("look for", name, ask, repeats=True)
    except StoreNotFoundError:
        return None


def list_level(connection: Connection, name: str) -> list[Mapping[str, Any]]:
    """What lies directly in a directory; nothing where there is none.

    Raises:
        StorageError: It cannot be listed.
    """
    path = path_of(connection, name)

    def ask(filesystem: Any) -> list[Mapping[str, Any]]:
        filesystem.invalidate_cache()
        return list(filesystem.ls(path, detail=True))

    try:
        found = connection.call("list", name, ask, repeats=True)
    except StoreNotFoundError:
        return []
    # A file is listed as itself, and so is the empty object by which some mark a directory.
    return [entry for entry in found if str(entry["name"]).strip("/") != path.strip("/")]


def read_whole(connection: Connection, name: str) -> bytes:
    """All bytes of a small file.

    Raises:
        StoreNotFoundError: There is none.
        StorageError: It cannot be read.
    """
    path = path_of(connection, name)
    return bytes(connection.call("read", name, lambda filesystem: filesystem.cat_file(path), repeats=True))


def is_directory(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is a directory, or a common prefix."""
    return entry.get("type") == "directory"


def size_of(entry: Mapping[str, Any]) -> int | None:
    """The size in bytes; None where the file system does not say."""
    size = entry.get("size")
    return int(size) if isinstance(size, int | float) else None


def changed_s(entry: Mapping[str, Any]) -> float:
    """When the entry was last changed, seconds since the Unix epoch; 0.0 where it does not say."""
    for name in _TIMES:
        found = entry.get(name)
        if isinstance(found, str):
            try:
                found = datetime.datetime.fromisoformat(found)
            except ValueError:
                continue
        if isinstance(found, datetime.datetime):
            # Without a zone it is UTC: so have it those that get it from a server.
            return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
        if isinstance(found, int | float) and not isinstance(found, bool) and found > 0:
            return float(found)
    return 0.0
