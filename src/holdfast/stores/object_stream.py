"""Reads an object as one answer from its start: for servers that do not answer ranges as such."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.errors import StorageError, StorageUnavailableError
from holdfast.stores.object_client import Client
from holdfast.stores.object_requests import stream

_CHUNK_BYTES = 1 << 20


class ObjectStream:
    """An object whose bytes come one after another; whoever goes back begins again. For one thread at a time.

    Attributes:
        size_bytes: Of the object.
        e_tag: Its version.

    Args:
        client: The bucket.
        name: The object.

    Raises:
        StoreNotFoundError: There is none.
        StorageError: It cannot be read.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self.size_bytes = 0
        self.e_tag: str | None = None
        self._chunks: Iterator[memoryview] | None = None
        # What has come and was not asked for yet, and where in the object it begins.
        self._left = memoryview(b"")
        self._start = 0
        self._begin()

    def read(self, start: int, num_bytes: int) -> memoryview:
        """Bytes from some place on, all of which lie within the object.

        Raises:
            StorageError: They did not come, or the object was replaced since it was opened.
        """
        if self._chunks is None or start < self._start:
            self._begin()
        try:
            while self._start + len(self._left) < start:
                self._advance()
            self._drop(start - self._start)
            parts = []
            while num_bytes > 0:
                if not self._left:
                    self._advance()
                part = self._left[:num_bytes]
                parts.append(part)
                num_bytes -= len(part)
                self._drop(len(part))
        except BaseException:
            self._chunks = None  # what follows a failure is not known: begin again
            raise
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _begin(self) -> None:
        size_bytes, e_tag, self._chunks = stream(self._client, self._name, _CHUNK_BYTES)
        if self.e_tag is not None and e_tag != self.e_tag:
            raise StorageError(f"Cannot read {self._url!r}: it was replaced while it was being read; open it again")
        self.size_bytes, self.e_tag = size_bytes, e_tag
        self._left, self._start = memoryview(b""), 0

    def _advance(self) -> None:
        self._drop(len(self._left))
        chunk = next(self._chunks, None) if self._chunks is not None else None
        if chunk is None:
            raise StorageUnavailableError(
                f"Cannot read {self._url!r}: {self._start} bytes came instead of {self.size_bytes}; try again"
            )
        self._left = chunk

    def _drop(self, num_bytes: int) -> None:
        self._start += num_bytes
        self._left = self._left[num_bytes:]

    @property
    def _url(self) -> str:
        return f"{self._client.place.root}/{self._name}"
