"""Writes to a file system of fsspec, and looks at what became of it: an answer that says "done" is no proof.

Records (small, whole or not at all) go the best way that the file system has: put in one piece where that is how it works, else
beside their place and moved there. Files of checkpoints are written where they belong: what is not committed yet may be half there.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import zlib
from typing import Any

from holdfast.errors import StorageError, StorageUnavailableError, StoreExistsError, StoreNotFoundError
from holdfast.stores import fsspec_pipeline
from holdfast.stores.base import Hasher
from holdfast.stores.fsspec_connection import Connection
from holdfast.stores.fsspec_look import is_directory, look, path_of, read_whole, size_of
from holdfast.stores.fsspec_stream import CHUNK_BYTES, read_piece, stream
from holdfast.stores.fsspec_traits import Creates, Moves
from holdfast.stores.local_write import temporary_name

_log = logging.getLogger("holdfast")
# How long another creator of the same record is waited for; it takes as long as two small writes.
_GUARD_S = 10.0
_LOOK_AGAIN_S = 0.05
_creating = threading.Lock()


def write_record(connection: Connection, name: str, data: bytes) -> None:
    """Puts a small file, over what was there.

    Raises:
        StorageError: It failed; what was there is there still, or (`Traits.replaces_whole`) may be damaged.
    """
    traits = connection.traits
    if traits.appears_whole or traits.moves is Moves.COPIES:
        put_small(connection, name, data)
        _compare(connection, name, data)
        return
    beside = _beside(name, temporary_name())
    try:
        put_small(connection, beside, data)
        _compare(connection, beside, data)  # before it takes the place of what is whole
        _move_over(connection, beside, name, data)
    except BaseException:
        remove_quietly(connection, beside)
        raise


def create_record(connection: Connection, name: str, data: bytes) -> None:
    """Puts a small file where nothing may lie yet.

    Raises:
        StoreExistsError: Something lies there. It may be ours, where an answer was lost.
        StorageError: It failed, and nothing is there.
    """
    # Of two threads one is first, whatever the file system can do.
    with _creating:
        _require_nothing(connection, name)
        try:
            _create(connection, name, data)
        except StoreExistsError:
            raise
        except StorageError:
            _require_nothing(connection, name)
            raise
        try:
            is_ours = read_whole(connection, name) == data
        except StoreNotFoundError:
            raise _vanished(connection, name) from None
        if not is_ours:
            raise _exists(connection, name)


def put_descriptor(connection: Connection, name: str, source: int, size_bytes: int, hasher: Hasher | None) -> None:
    """Stores the first `size_bytes` of an open file.

    Raises:
        StoreExistsError: Something lies at the name; nothing was read.
        StorageError: Reading or writing failed, and no file is there; `__cause__` is the `OSError` of a failed reading.
    """
    if name in connection.remains:  # of a try of ours
        remove_file(connection, name)
        connection.remains.discard(name)
    _require_nothing(connection, name)
    try:
        if size_bytes <= CHUNK_BYTES:
            data = read_piece(connection, name, source, 0, size_bytes)
            if hasher is not None:
                hasher.update(data)
            put_small(connection, name, data)
        else:
            make_directory(connection, _parent(name))
            stream(connection, name, source, size_bytes, hasher)
        _verify_size(connection, name, size_bytes)
    except BaseException:
        connection.remains.add(name)
        with contextlib.suppress(StorageError):
            remove_file(connection, name)
            connection.remains.discard(name)
        raise


def make_directory(connection: Connection, name: str) -> None:
    """Makes a directory and those above it, where the file system has such.

    Raises:
        StoreExistsError: A file is in the way.
        StorageError: It cannot be made.
    """
    if not connection.traits.directories or name in connection.directories:
        return
    path = path_of(connection, name)
    try:
        connection.call("make the directory", name, lambda filesystem: filesystem.makedirs(path, exist_ok=True))
    except StorageError:
        # Some look before they make one, and another process was faster.
        found = look(connection, name)
        if found is None or not is_directory(found):
            raise
    connection.directories.add(name)


def remove_file(connection: Connection, name: str) -> None:
    """Removes a file; one that is gone already is no error.

    Raises:
        StorageError: It is still there.
    """
    path = path_of(connection, name)
    _gone(connection, "remove", name, lambda filesystem: filesystem.rm_file(path))


def remove_directory(connection: Connection, name: str) -> None:
    """Removes an empty directory, where the file system has such; one that is gone already is no error.

    Raises:
        StorageError: It is still there.
    """
    connection.directories.discard(name)
    if connection.traits.directories:
        path = path_of(connection, name)
        _gone(connection, "remove the directory", name, lambda filesystem: filesystem.rmdir(path))


def remove_quietly(connection: Connection, name: str) -> None:
    """Takes back what is not wanted any more; the error to be seen is the one that led here."""
    try:
        remove_file(connection, name)
    except StorageError as error:
        _log.warning("a file that is not wanted any more could not be removed: %s", error)


def move(connection: Connection, source: str, target: str) -> None:
    """Moves a file, as the file system does it.

    Raises:
        StorageError: It said that it failed.
    """
    source_path, target_path = path_of(connection, source), path_of(connection, target)
    connection.call("move to", target, lambda filesystem: filesystem.mv(source_path, target_path))


def create_by_opening(connection: Connection, name: str, data: bytes) -> None:
    """Creates a file that must not exist, with the server as the judge; for an instant it is empty.

    Raises:
        StoreExistsError: It exists.
        StorageError: It failed, and what there is may be empty.
    """
    path = path_of(connection, name)

    def create(filesystem: Any) -> None:
        with filesystem.open(path, "xb") as file:
            file.write(data)

    connection.call("create", name, create)


def create_by_putting(connection: Connection, name: str, data: bytes) -> None:
    """Creates an object that must not exist, with the server as the judge.

    Raises:
        StoreExistsError: It exists.
        StorageError: It failed.
    """
    path = path_of(connection, name)
    connection.call("create", name, lambda filesystem: filesystem.pipe_file(path, data, mode="create"))


def _create(connection: Connection, name: str, data: bytes) -> None:
    traits = connection.traits
    make_directory(connection, _parent(name))
    if traits.appears_whole:
        if traits.creates is Creates.BY_PUTTING:
            create_by_putting(connection, name, data)
        else:
            put_small(connection, name, data)
    elif traits.moves is Moves.COPIES:
        if traits.creates is Creates.BY_OPENING:
            create_by_opening(connection, name, data)
        else:
            put_small(connection, name, data)
    elif traits.moves is Moves.REPLACES and traits.creates is Creates.BY_OPENING:
        _create_guarded(connection, name, data)
    else:
        beside = _beside(name, temporary_name())
        try:
            put_small(connection, beside, data)
            _compare(connection, beside, data)
            _require_nothing(connection, name)
            move(connection, beside, name)
        except BaseException:
            remove_quietly(connection, beside)
            raise


def _create_guarded(connection: Connection, name: str, data: bytes) -> None:
    """Creates a record that is whole when it appears, though a move would replace another's.

    The file beside it, which only one can make, is the right to move it there. Dying between the two leaves that file: who meets
    it waits, and takes it away. One that was only slow is thereby overtaken; it finds another's bytes in the place, or none to move.
    """
    guard = _beside(name, f".holdfast-{zlib.crc32(name.encode('utf-8', 'surrogateescape')):08x}-0-0.tmp")
    deadline_s = time.monotonic() + _GUARD_S
    while True:
        try:
            create_by_opening(connection, guard, data)
            break
        except StoreExistsError:
            _require_nothing(connection, name)
            if time.monotonic() > deadline_s:
                remove_file(connection, guard)
                deadline_s += _GUARD_S
            time.sleep(random.uniform(0.5, 1.0) * _LOOK_AGAIN_S)
    try:
        _compare(connection, guard, data)
        _require_nothing(connection, name)
        move(connection, guard, name)
    except BaseException:
        remove_quietly(connection, guard)
        raise


def put_small(connection: Connection, name: str, data: bytes) -> None:
    """Writes a small file at its place."""
    path = path_of(connection, name)
    pipelines = connection.traits.pipelines
    make_directory(connection, _parent(name))

    def write(filesystem: Any) -> None:
        if pipelines:
            fsspec_pipeline.write_whole(filesystem, path, data)
        else:
            filesystem.pipe_file(path, data)

    try:
        connection.call("write", name, write, repeats=True)
    except StoreNotFoundError:
        if not connection.traits.directories:
            raise
        # Its directory was taken away since it was made.
        connection.directories.clear()
        make_directory(connection, _parent(name))
        connection.call("write", name, write)


def _move_over(connection: Connection, beside: str, name: str, data: bytes) -> None:
    failure: StorageError | None = None
    try:
        if connection.traits.moves is Moves.REFUSES:
            # Dying on the next line, or reading then, finds no record at all; `Traits.replaces_whole` says so.
            remove_file(connection, name)
        move(connection, beside, name)
    except StorageError as error:
        failure = error  # it may have happened all the same: what lies there tells
    try:
        _compare(connection, name, data)
    except StorageError as error:
        raise failure or error from None


def _compare(connection: Connection, name: str, data: bytes) -> None:
    try:
        found = read_whole(connection, name)
    except StoreNotFoundError:
        raise _vanished(connection, name) from None
    if found != data:
        raise StorageUnavailableError(
            f"Cannot write {connection.where(name)!r}: other bytes lie there than were written; another program writes there, or the "
            "file system says that it has written what it has not"
        )


def _verify_size(connection: Connection, name: str, size_bytes: int) -> None:
    found = look(connection, name)
    if found is None:
        raise _vanished(connection, name)
    listed = size_of(found)
    if listed is not None and listed != size_bytes:
        raise StorageUnavailableError(
            f"Cannot store {connection.where(name)!r}: {listed} bytes lie there instead of {size_bytes}; is the disk there full, or does "
            "another program write there?"
        )


def _gone(connection: Connection, action: str, name: str, function: Any) -> None:
    try:
        connection.call(action, name, function, repeats=True)
    except StoreNotFoundError:
        return
    except StorageError:
        # Each has an error of its own for what is not there.
        if look(connection, name) is not None:
            raise


def _require_nothing(connection: Connection, name: str) -> None:
    if look(connection, name) is not None:
        raise _exists(connection, name)


def _exists(connection: Connection, name: str) -> StoreExistsError:
    return StoreExistsError(f"Cannot create {connection.where(name)!r}: something lies there")


def _vanished(connection: Connection, name: str) -> StorageUnavailableError:
    return StorageUnavailableError(
        f"Cannot store {connection.where(name)!r}: the file system said that it has it, and now says that it has not"
    )


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _beside(name: str, other: str) -> str:
    parent = _parent(name)
    return f"{parent}/{other}" if parent else other
