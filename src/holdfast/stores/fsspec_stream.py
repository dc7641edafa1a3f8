"""Sends a file to a file system of fsspec in pieces."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from holdfast.errors import StorageError
from holdfast.stores import fsspec_pipeline
from holdfast.stores.base import Hasher
from holdfast.stores.fsspec_connection import Connection
from holdfast.stores.fsspec_look import path_of
from holdfast.stores.fsspec_session import Session
from holdfast.stores.local_copy import read_exactly
from holdfast.stores.local_errors import storage_error

CHUNK_BYTES = 4 << 20


def read_piece(connection: Connection, name: str, source: int, offset: int, num_bytes: int) -> bytes:
    """A piece of the file that is to be stored.

    Raises:
        StorageError: It cannot be read; `__cause__` is the `OSError`.
    """
    try:
        return read_exactly(source, offset, num_bytes)
    except OSError as error:
        raise storage_error("store", connection.where(name), error) from error


def stream(connection: Connection, name: str, source: int, size_bytes: int, hasher: Hasher | None) -> None:
    """Writes the first `size_bytes` of an open file, piece by piece, all by the object that opened the file there.

    Raises:
        StorageError: Reading or writing failed, and a part of it may lie there.
    """
    path = path_of(connection, name)
    session = connection.session()
    file = connection.call("store", name, lambda filesystem: filesystem.open(path, "wb"), session=session)
    try:
        for offset in range(0, size_bytes, CHUNK_BYTES):
            data = read_piece(connection, name, source, offset, min(CHUNK_BYTES, size_bytes - offset))
            if hasher is not None:
                hasher.update(data)
            _write(connection, name, file, data, session)
        connection.close("store", name, file, session)
    except BaseException:
        with contextlib.suppress(StorageError):
            connection.close("give up", name, file, session)
        # Collected as garbage while it is open, it would be written nevertheless.
        with contextlib.suppress(AttributeError, TypeError):
            file.closed = True
        raise


def _write(connection: Connection, name: str, file: Any, data: bytes, session: Session) -> None:
    write = fsspec_pipeline.write if connection.traits.pipelines else _write_some
    while data:
        written = connection.call("store", name, functools.partial(_with_file, write, file, data), session=session)
        # Not all of them say how much they took: then it is all.
        data = data[written:] if isinstance(written, int) and 0 < written < len(data) else b""


def _with_file(write: Callable[[Any, bytes], Any], file: Any, data: bytes, _: Any) -> Any:
    return write(file, data)


def _write_some(file: Any, data: bytes) -> Any:
    return file.write(data)
