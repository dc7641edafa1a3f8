"""Digests of files: xxh3-128, which guards against damage, not against someone who can write to the store.

A file of more than 16 MiB is digested in parts of that size, and what counts is the digest of the parts' digests: so several
threads share one file. Earlier versions digested it as a whole, and what they wrote is compared so.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable

import xxhash

from holdfast.stores.local_copy import ended_early, feed
from holdfast.stores.lone_threads import may_have_helpers

PART_BYTES = 16 * 1024 * 1024

_WHOLE = "xxh3-128:"
_IN_PARTS = "xxh3-128-16mib:"
# Read into a buffer that fits into the second-level cache; smaller ones spend the time on handing over the interpreter.
_BUFFER_BYTES = 512 * 1024
# One core digests about 7 GB/s of what is in memory: a few are as fast as memory itself.
_MOST_THREADS = 4


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.view = memoryview(bytearray(_BUFFER_BYTES))


_buffers = _Buffers()


PartHasher = xxhash.xxh3_128
"""Digests one part of a file; its `digest()` is what `FileHasher.add_part` takes."""


class FileHasher:
    """Takes a file's bytes in order and gives their digest.

    Args:
        on_bytes: Told how many bytes each update brought; what it raises ends the reading.
        like: A digest that this one will be compared with: large files are then digested as it was.
    """

    __slots__ = ("_in_part", "_on_bytes", "_parts", "_state", "is_whole")

    def __init__(self, on_bytes: Callable[[int], None] | None = None, *, like: str | None = None) -> None:
        self.is_whole = like is not None and like.startswith(_WHOLE)
        self._on_bytes = on_bytes
        self._state = xxhash.xxh3_128()
        self._in_part = 0
        self._parts = bytearray()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Adds the next bytes."""
        num_bytes = len(data)
        if self._in_part + num_bytes <= PART_BYTES or self.is_whole:
            self._state.update(data)
            self._in_part += num_bytes
        else:
            self._update_across(memoryview(data))
        if self._on_bytes is not None:
            self._on_bytes(num_bytes)

    def _update_across(self, view: memoryview) -> None:
        while view:
            # A part ends with the first byte of the next one: a file of just one part is digested as a whole.
            if self._in_part == PART_BYTES:
                self._parts += self._state.digest()
                self._state.reset()
                self._in_part = 0
            taken = view[: PART_BYTES - self._in_part]
            self._state.update(taken)
            self._in_part += len(taken)
            view = view[len(taken) :]

    def add_part(self, number: int, digest: bytes, num_bytes: int) -> None:
        """Takes a part's digest, in any order; for a file of more parts than one, of which nothing came by `update`."""
        end = (number + 1) * len(digest)
        self._parts.extend(bytes(max(0, end - len(self._parts))))
        self._parts[end - len(digest) : end] = digest
        if self._on_bytes is not None:
            self._on_bytes(num_bytes)

    def text(self) -> str:
        """The digest as records hold it: the algorithm, a colon, and 32 hexadecimal digits."""
        if not self._parts:
            return _WHOLE + self._state.hexdigest()
        last = self._state.digest() if self._in_part else b""
        return _IN_PARTS + xxhash.xxh3_128_hexdigest(bytes(self._parts) + last)


def is_known(digest: str) -> bool:
    """Whether this version can compute digests of that algorithm."""
    return digest.startswith((_WHOLE, _IN_PARTS))


def digest_fd(descriptor: int, size_bytes: int, hasher: FileHasher | None = None) -> str:
    """The digest of an open file's first `size_bytes`, without moving its offset where there are no holes.

    Args:
        hasher: A fresh one to use, e.g. one that counts.

    Raises:
        OSError: The file cannot be read, or holds fewer bytes.
    """
    hasher = FileHasher() if hasher is None else hasher
    # What has holes is read around them, one after another.
    if size_bytes > PART_BYTES and not hasher.is_whole and os.fstat(descriptor).st_blocks * 512 >= size_bytes:
        _Parts(descriptor, size_bytes, hasher).read()
    else:
        feed(hasher, descriptor, size_bytes)
    return hasher.text()


class _Parts:
    """Reads the parts of one file in this thread, and in others as far as there are cores for them."""

    _busy = 0
    """Threads of this process that are at some file's parts."""
    _busy_guard = threading.Lock()

    def __init__(self, descriptor: int, size_bytes: int, hasher: FileHasher) -> None:
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._hasher = hasher
        self._guard = threading.Lock()
        self._left = collections.deque(range(-(-size_bytes // PART_BYTES)))
        self._error: BaseException | None = None

    def read(self) -> None:
        """Feeds the hasher.

        Raises:
            OSError: The file cannot be read, or is shorter.
        """
        count = self._take_cores()
        helpers = [threading.Thread(target=self._run, name="holdfast-digest", daemon=True) for _ in range(count - 1)]
        try:
            with contextlib.suppress(RuntimeError):  # there may be no more threads: this one is enough
                for helper in helpers:
                    helper.start()
            self._run()
        finally:
            self._left.clear()  # where this thread was interrupted
            for helper in helpers:
                if helper.ident is not None:
                    helper.join()
            with _Parts._busy_guard:
                _Parts._busy -= count
        if self._error is not None:
            raise self._error

    def _take_cores(self) -> int:
        """How many threads are to read; this one always does."""
        with _Parts._busy_guard:
            spare = (os.cpu_count() or 1) - _Parts._busy if may_have_helpers() else 1
            count = max(1, min(spare, _MOST_THREADS, len(self._left)))
            _Parts._busy += count
        return count

    def _run(self) -> None:
        try:
            while True:
                try:
                    number = self._left.popleft()
                except IndexError:
                    return
                digest, num_bytes = self._read_part(number * PART_BYTES)
                with self._guard:
                    self._hasher.add_part(number, digest, num_bytes)
        except BaseException as error:  # noqa: BLE001 - raised by `read`, whichever thread met it
            self._error = self._error or error
            self._left.clear()

    def _read_part(self, start: int) -> tuple[bytes, int]:
        state = xxhash.xxh3_128()
        view = _buffers.view
        end = min(start + PART_BYTES, self._size_bytes)
        offset = start
        while offset < end:
            num_bytes = os.preadv(self._descriptor, [view[: min(end - offset, len(view))]], offset)
            if num_bytes == 0:
                raise ended_early(offset)
            state.update(view[:num_bytes])
            offset += num_bytes
        return state.digest(), end - start
