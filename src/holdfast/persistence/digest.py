"""Digests of files: xxh3-128, which guards against damage, not against someone who can write to the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import BinaryIO

import xxhash

from holdfast.stores.local_copy import feed

ALGORITHM = "xxh3-128"

_PREFIX = f"{ALGORITHM}:"
_BUFFER_BYTES = 1024 * 1024


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.view = memoryview(bytearray(_BUFFER_BYTES))


_buffers = _Buffers()


class FileHasher:
    """Takes a file's bytes in order and gives their digest.

    Args:
        on_bytes: Told how many bytes each update brought; what it raises ends the reading.
    """

    __slots__ = ("_on_bytes", "_state", "update")

    def __init__(self, on_bytes: Callable[[int], None] | None = None) -> None:
        self._state = xxhash.xxh3_128()
        self._on_bytes = on_bytes
        self.update: Callable[[bytes | bytearray | memoryview], None] = (
            self._state.update if on_bytes is None else self._update_and_tell
        )

    def _update_and_tell(self, data: bytes | bytearray | memoryview) -> None:
        self._state.update(data)
        if self._on_bytes is not None:
            self._on_bytes(len(data))

    def text(self) -> str:
        """The digest as records hold it: `xxh3-128:` and 32 hexadecimal digits."""
        return _PREFIX + self._state.hexdigest()


def is_known(digest: str) -> bool:
    """Whether this version can compute digests of that algorithm."""
    return digest.startswith(_PREFIX)


def digest_fd(descriptor: int, size_bytes: int, hasher: FileHasher | None = None) -> str:
    """The digest of an open file's first `size_bytes`, without moving its offset where there are no holes.

    Args:
        hasher: A fresh one to use, e.g. one that counts.

    Raises:
        OSError: The file cannot be read, or holds fewer bytes.
    """
    hasher = FileHasher() if hasher is None else hasher
    feed(hasher, descriptor, size_bytes)
    return hasher.text()


def digest_stream(stream: BinaryIO) -> tuple[str, int]:
    """The digest of all that a binary file still gives, and how many bytes that were."""
    hasher = FileHasher()
    view = _buffers.view
    size_bytes = 0
    while num_bytes := stream.readinto(view):  # type: ignore[attr-defined]
        hasher.update(view[:num_bytes])
        size_bytes += num_bytes
    return hasher.text(), size_bytes
