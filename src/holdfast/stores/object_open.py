"""Reads an object as a file: in ranges, ahead of its reader, and never half of one object and half of another."""

from __future__ import annotations

import collections
import functools
import io
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from holdfast.errors import StorageError, StorageUnavailableError, StoreNotFoundError
from holdfast.stores.object_client import Client
from holdfast.stores.object_errors import has_no_ranges
from holdfast.stores.object_memory import budget
from holdfast.stores.object_requests import Piece, fetch, look
from holdfast.stores.object_stream import ObjectStream

# The first request of an object: all of a small one. A reader that seeks costs no more than this.
_FIRST_BYTES = 1 << 20
_LARGEST_BYTES = 8 << 20
_BLOCKS_AHEAD = 2


@dataclass
class _Block:
    """Some bytes of the object.

    Attributes:
        start: Where in the object they begin.
        data: The bytes.
        held_bytes: What they take of the budget.
    """

    start: int
    data: memoryview
    held_bytes: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.data)


@dataclass
class _Ahead:
    """A block that is being read before anybody asked for it."""

    start: int
    num_bytes: int
    future: Future[Piece]


class ObjectReader(io.BufferedIOBase):
    """An object as a seekable binary file, for one thread at a time.

    Whoever reads on and on gets larger ranges, and two of them are fetched ahead as far as the budget has memory. Between two calls
    what was fetched so is given up where others wait for memory. If the object is replaced while it is read, reading fails.

    Args:
        client: The bucket.
        name: The object.

    Raises:
        StoreNotFoundError: There is none.
        StorageError: It cannot be read.
    """

    def __init__(self, client: Client, name: str) -> None:
        super().__init__()
        self._client = client
        self._name = name
        self._position = 0
        self._ahead: collections.deque[_Ahead] = collections.deque()
        self._next_bytes = _FIRST_BYTES
        self._e_tag: str | None = None
        self._stream: ObjectStream | None = None
        self._budget = budget()
        self._process = os.getpid()
        # Held by whoever uses or changes the blocks: the reader's thread, or one that waits for memory.
        self._lock = threading.Lock()
        self._size_bytes, first = self._open()
        self._block = _Block(0, first)
        self._budget.lend_to(self)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position, bytes from the start."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position, without a request."""
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """As many bytes as are asked for, fewer at the end only."""
        self._check_open()
        left = max(0, self._size_bytes - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        chunks = []
        while wanted > 0:
            view = self._view()[:wanted]
            chunks.append(bytes(view))
            self._position += len(view)
            wanted -= len(view)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def read1(self, size: int = -1, /) -> bytes:
        """Bytes that are there already, or one range of them."""
        view = self._view() if size else memoryview(b"")
        data = bytes(view if size < 0 else view[:size])
        self._position += len(data)
        return data

    def peek(self, _size: int = 0, /) -> bytes:
        """Bytes at the position, which stays."""
        return bytes(self._view()[: io.DEFAULT_BUFFER_SIZE])

    def readinto(self, buffer: Any, /) -> int:
        """Fills a buffer, fewer bytes at the end only."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target):
            view = self._view()[: len(target) - done]
            if not view:
                break
            target[done : done + len(view)] = view
            done += len(view)
            self._position += len(view)
        return done

    def readinto1(self, buffer: Any, /) -> int:
        """As `readinto`, with one range at most."""
        target = memoryview(buffer).cast("B")
        view = self._view()[: len(target)]
        target[: len(view)] = view
        self._position += len(view)
        return len(view)

    def close(self) -> None:
        """Lets go of what was fetched; safe to repeat."""
        if not self.closed:
            if os.getpid() == self._process:
                with self._lock:
                    self._give_up_blocks()
            else:
                # In a forked child the lock may be held by a thread that did not come along, and the memory is not this process's.
                self._ahead.clear()
                self._block = _Block(0, memoryview(b""))
            self._stream = None
        super().close()

    def give_way(self) -> None:
        """Gives back the memory of what was fetched ahead, unless it is being read in this moment."""
        if self._lock.acquire(blocking=False):
            try:
                if self._ahead or self._block.held_bytes:
                    self._give_up_blocks()
            finally:
                self._lock.release()

    def _give_up_blocks(self) -> None:
        self._drop_ahead()
        # Empty, and where the reader stands: it reads on from there.
        self._keep(_Block(self._position, memoryview(b"")))

    def _view(self) -> memoryview:
        """What there is from the position on; empty at the end only."""
        self._check_open()
        position = self._position
        if position >= self._size_bytes:
            return memoryview(b"")
        if not self._lock.acquire(blocking=False):
            self._client.handle()  # an error in a forked child, whose lock may be held by a thread that it does not have
            self._lock.acquire()
        try:
            if not self._block.start <= position < self._block.end:
                self._load(position)
            return self._block.data[position - self._block.start :]
        finally:
            self._lock.release()

    def _load(self, position: int) -> None:
        self._client.handle()  # in a forked child an error, before anything is waited for that its parent's thread would do
        if position == self._block.end and position:
            # Read on to here: it will go on, so ever larger ranges pay.
            self._next_bytes = min(2 * self._next_bytes, _LARGEST_BYTES)
        elif not (self._ahead and self._ahead[0].start == position):
            self._next_bytes = _FIRST_BYTES
        if self._ahead and self._ahead[0].start == position:
            ahead = self._ahead.popleft()
            try:
                piece = self._client.outcome("read", self._name, ahead.future)
                data = self._checked(piece, ahead.num_bytes)
            except BaseException:
                self._budget.give_back(ahead.num_bytes)
                raise
            self._keep(_Block(position, data, ahead.num_bytes))
        else:
            self._drop_ahead()
            self._keep(_Block(position, self._fetch(position, self._range_at(position))))
        if self._next_bytes > _FIRST_BYTES and self._stream is None:
            self._read_ahead()

    def _read_ahead(self) -> None:
        last = self._ahead[-1] if self._ahead else None
        start = last.start + last.num_bytes if last else self._block.end
        while len(self._ahead) < _BLOCKS_AHEAD and (num_bytes := self._range_at(start)):
            if not self._budget.try_take(num_bytes):
                return
            span = (start, start + num_bytes)
            future = self._client.calls.begin(functools.partial(fetch, self._client, self._name, span), bulk=True)
            self._ahead.append(_Ahead(start, num_bytes, future))
            start += num_bytes

    def _range_at(self, start: int) -> int:
        return max(0, min(self._next_bytes, self._size_bytes - start))

    def _drop_ahead(self) -> None:
        while self._ahead:
            ahead = self._ahead.popleft()
            ahead.future.cancel()
            self._budget.give_back(ahead.num_bytes)

    def _keep(self, block: _Block) -> None:
        held, self._block = self._block, block
        if held.held_bytes:
            self._budget.give_back(held.held_bytes)

    def _open(self) -> tuple[int, memoryview]:
        client = self._client
        if client.answers_ranges:
            try:
                piece = self._request(0, _FIRST_BYTES)
            except StoreNotFoundError:
                raise
            except StorageError as error:
                # Of an object without bytes no range can be asked for; and a range that reaches beyond the end some servers
                # answer as if none had been, which the library takes for an error.
                found = look(client, self._name)
                if found is None:
                    raise
                if found.size_bytes > _FIRST_BYTES:
                    if not has_no_ranges(str(error)):
                        raise
                    client.answers_ranges = False
            else:
                self._e_tag = piece.e_tag
                return piece.size_bytes, piece.data
        stream = self._stream = ObjectStream(client, self._name)
        return stream.size_bytes, stream.read(0, min(stream.size_bytes, _FIRST_BYTES))

    def _fetch(self, start: int, num_bytes: int) -> memoryview:
        if self._stream is not None:
            return self._stream.read(start, num_bytes)
        return self._checked(self._request(start, num_bytes), num_bytes)

    def _request(self, start: int, num_bytes: int) -> Piece:
        span = (start, start + num_bytes)
        return self._client.call(
            "read", self._name, functools.partial(fetch, self._client, self._name, span), bulk=True
        )

    def _checked(self, piece: Piece, num_bytes: int) -> memoryview:
        # Not asked of the server (If-Match): some compare the tag with other quotation marks than they gave.
        if self._e_tag is not None and piece.e_tag != self._e_tag:
            raise StorageError(f"Cannot read {self._url!r}: it was replaced while it was being read; open it again")
        if piece.size_bytes != self._size_bytes or len(piece.data) != num_bytes:
            raise StorageUnavailableError(
                f"Cannot read {self._url!r}: {len(piece.data)} bytes came instead of {num_bytes}; try again"
            )
        return piece.data

    @property
    def _url(self) -> str:
        return f"{self._client.place.root}/{self._name}"

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
