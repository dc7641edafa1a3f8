"""Open files on their way from a worker to its node: descriptors beside small frames, over a socket of their own.

From the moment that `HandOver.send` returns, the node holds the bytes: the worker may delete the files, or die. Nothing is
copied. On the same socket the node tells, unasked, what became of each checkpoint that was handed over.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from holdfast.errors import CheckpointSourceError, DriverLostError, HoldfastError, ShardModifiedError
from holdfast.persistence import layout
from holdfast.persistence.open_files import RaisedLimit, free_files
from holdfast.persistence.sources import REPLACED, open_source, source_of
from holdfast.records import StagedFile, StagedShard
from holdfast.worker import protocol

# The kernel takes 253 at most in one message.
_PER_MESSAGE = 250
# Of the files that this process may still open: others are for the rest of it, and the node must have room for a whole message.
_FREE_PART = 16
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})
_CHUNK_BYTES = 1 << 16
_FULL_WAIT_S = 0.001

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(protocol.Files | protocol.Abandoned).decode


def regular_files(shard: StagedShard) -> list[StagedFile]:
    """The files that are handed over open, in the order in which they come; links and directories need no bytes."""
    return [file for file in shard.files if file.kind == "file"]


class HandOver:
    """A shard's files on their way to the node; until `close` this process may open more files than otherwise.

    Args:
        connection: The worker's end.
        index: The report that the shard belongs to.
    """

    def __init__(self, connection: socket.socket, index: int, shard: StagedShard) -> None:
        self._socket = connection
        self._index = index
        self._root = layout.decode_path(shard.root)
        self._files = regular_files(shard)
        self._opened: list[int] = []
        self._error: HoldfastError | None = None
        self._limit = RaisedLimit()
        self._most = min(_PER_MESSAGE, max(1, free_files() // _FREE_PART))

    def open_first(self) -> None:
        """Opens as many files as one message takes, while the node thinks about its answer; `send` raises what goes wrong. Safe to repeat."""
        if self._opened or self._error is not None:
            return
        try:
            self._open(0)
        except HoldfastError as error:
            self._error = error

    def send(self) -> None:
        """Sends all of them, open; waits only where the node has all it can hold.

        Raises:
            ShardModifiedError: A file vanished or was replaced since it was staged.
            CheckpointSourceError: A file cannot be read.
            DriverLostError: The node is gone.
        """
        try:
            if self._error is not None:
                raise self._error
            first = 0
            while first < len(self._files):
                if not self._opened:
                    self._open(first)
                _send(self._socket, protocol.Files(self._index, first, len(self._opened)), self._opened)
                first += len(self._opened)
                self._close_opened()
        finally:
            self.close()

    def abandon(self, error: BaseException) -> None:
        """Tells the node, where it has heard of the report, that files are missing for ever."""
        kind, text = HoldfastError.kind, "the hand-over of its files was interrupted"
        if isinstance(error, HoldfastError):
            kind, text = error.kind, str(error)
        with contextlib.suppress(DriverLostError):
            _send(self._socket, protocol.Abandoned(self._index, kind, text), [])

    def close(self) -> None:
        """Closes this process's descriptors; safe to repeat."""
        self._close_opened()
        self._limit.restore()

    def _close_opened(self) -> None:
        while self._opened:
            os.close(self._opened.pop())

    def _open(self, first: int) -> None:
        """Opens the files of the next message: fewer, but one at least, where this process may open no more."""
        for file in self._files[first : first + self._most]:
            try:
                self._opened.append(open_source(self._root, file))
            except OSError as error:
                if error.errno in _NONE_LEFT and self._opened:
                    return
                raise _told(self._root, file, error) from error


def _told(root: str, file: StagedFile, error: OSError) -> HoldfastError:
    path = source_of(root, file)
    if error.errno in REPLACED:
        return ShardModifiedError(
            f"{path!r} vanished or was replaced while it was being reported; leave the directory alone until `report` "
            "has returned"
        )
    return CheckpointSourceError(f"Cannot read {path!r}: {os.strerror(error.errno or 0)}")


def _send(connection: socket.socket, message: protocol.Message, descriptors: Sequence[int]) -> None:
    frame = _frame(message)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    while True:
        try:
            sent = connection.sendmsg([frame], ancillary)
            if sent < len(frame):
                connection.sendall(frame[sent:])
            return
        except OSError as error:
            # More are on their way than the kernel allows at once: the node is about to take some.
            if error.errno == errno.ETOOMANYREFS:
                time.sleep(_FULL_WAIT_S)
                continue
            raise DriverLostError(f"the driver of this worker is gone ({error})") from error


def _frame(message: protocol.Message) -> bytes:
    body = _encode(message)
    return protocol.HEADER.pack(len(body)) + body


class Receiver:
    """The node's end: takes frames and their descriptors from a socket that does not block."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self.at_end = False

    def receive(self) -> Iterator[tuple[protocol.Files | protocol.Abandoned, list[int]]]:
        """What has come since the last call; each message with its descriptors, which the caller closes.

        Raises:
            OSError: This process may open no more files; what could not be opened is lost.
        """
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _CHUNK_BYTES, 2 * _PER_MESSAGE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, descriptors, flags = b"", [], 0
        self._descriptors.extend(descriptors)
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, "a file that was handed over could not be opened here: too many open files")
        if not data:
            self.at_end = True
            return
        self._buffer += data
        while (body := self._take()) is not None:
            message = _decode(body)
            count = message.count if isinstance(message, protocol.Files) else 0
            yield message, [self._descriptors.popleft() for _ in range(count)]

    def _take(self) -> bytes | None:
        buffer, head = self._buffer, protocol.HEADER.size
        if len(buffer) < head:
            return None
        end = head + protocol.HEADER.unpack_from(buffer)[0]
        if len(buffer) < end:
            return None
        body = bytes(buffer[head:end])
        del buffer[:end]
        return body

    def close(self) -> None:
        """Closes what came and was never asked for."""
        while self._descriptors:
            os.close(self._descriptors.popleft())
