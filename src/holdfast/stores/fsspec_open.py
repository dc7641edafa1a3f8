"""Reads a file of fsspec as a seekable file: in ranges, each with the limit of time that all calls have."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, cast

from holdfast.errors import StorageError, StorageUnavailableError, StoreNotFoundError
from holdfast.stores import fsspec_pipeline
from holdfast.stores.fsspec_connection import Connection
from holdfast.stores.fsspec_look import is_directory, look, path_of, read_whole, size_of

_RANGE_BYTES = 4 << 20
_BUFFER_BYTES = 1 << 20


def open_file(connection: Connection, name: str) -> BinaryIO:
    """The file; for one thread at a time.

    Raises:
        StoreNotFoundError: There is none.
        StorageError: The file system did not say.
    """
    found = look(connection, name)
    if found is None or is_directory(found):
        raise StoreNotFoundError(f"Cannot read {connection.where(name)!r}: there is no file of that name")
    size_bytes = size_of(found)
    if size_bytes is None:
        return io.BytesIO(read_whole(connection, name))
    return cast("BinaryIO", io.BufferedReader(_Ranges(connection, name, size_bytes), _BUFFER_BYTES))


class _Ranges(io.RawIOBase):
    """The bytes of a file that had this size when it was opened."""

    def __init__(self, connection: Connection, name: str, size_bytes: int) -> None:
        super().__init__()
        self._connection = connection
        self._name = name
        self._path = path_of(connection, name)
        self._size_bytes = size_bytes
        self._position = 0
        self._pipelines = connection.traits.pipelines
        self._options = {"seekable": True} if connection.traits.asks_to_seek else {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        data = self._fetch(len(target))
        target[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        chunks = []
        while chunk := self._fetch(_RANGE_BYTES):
            chunks.append(chunk)
        return b"".join(chunks)

    def _fetch(self, num_bytes: int) -> bytes:
        """The next bytes: some, unless it is the end."""
        start = self._position
        end = min(self._size_bytes, start + min(num_bytes, _RANGE_BYTES))
        if end <= start:
            return b""

        def read(filesystem: Any) -> bytes:
            if self._pipelines:
                return fsspec_pipeline.read(filesystem, self._path, start, end)
            return bytes(filesystem.cat_file(self._path, start=start, end=end, **self._options))

        data = self._connection.call("read", self._name, read, repeats=True)
        if not data:
            raise StorageUnavailableError(
                f"Cannot read {self._connection.where(self._name)!r}: it ended after {start} of {self._size_bytes} bytes; try again"
            )
        if len(data) > end - start:
            raise StorageError(
                f"Cannot read {self._connection.where(self._name)!r}: the file system gave {len(data)} bytes where {end - start} were "
                "asked for; it cannot read ranges"
            )
        self._position += len(data)
        return data
