"""What `report` returns: a checkpoint that is committed, or on its way."""

from __future__ import annotations

import select
import socket
import threading
import time
import weakref
from collections.abc import Callable

import msgspec

from holdfast.checkpoint import Checkpoint
from holdfast.errors import DriverLostError, WaitTimeoutError
from holdfast.worker import protocol
from holdfast.worker.answers import error_of
from holdfast.worker.reading import read_into

_CHUNK_BYTES = 1 << 16
_decode = msgspec.msgpack.Decoder(protocol.Settled).decode


class PendingCheckpoint:
    """A reported checkpoint on its way into storage; after a report in another mode than `ASYNC` it has arrived."""

    def __init__(self, checkpoint: Checkpoint | None = None, *, inbox: Inbox | None = None) -> None:
        self._checkpoint = checkpoint
        self._error: BaseException | None = None
        self._inbox = inbox

    def __repr__(self) -> str:
        state = "on its way" if not self.done() else f"{self._error or self._checkpoint!r}"
        return f"PendingCheckpoint({state})"

    def done(self) -> bool:
        """Whether it is committed, or has failed; never waits."""
        if self._inbox is not None:
            self._inbox.look()
        return self._inbox is None

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Why it could not be committed, or None; waits until that is known.

        Args:
            timeout_s: Seconds to wait at most; None waits as long as the driver lives.

        Raises:
            WaitTimeoutError: It is still on its way.
            DriverLostError: The driver is gone.
        """
        if self._inbox is not None:
            self._inbox.wait_for(self, timeout_s)
        return self._error

    def result(self, timeout_s: float | None = None) -> Checkpoint | None:
        """The committed checkpoint, which survives the death of every process; None where no rank reported one.

        Args:
            timeout_s: Seconds to wait at most; None waits as long as the driver lives.

        Raises:
            WaitTimeoutError: It is still on its way.
            DriverLostError: The driver is gone.
            HoldfastError: What it failed of: a `ShardModifiedError`, a `StorageError`, …
        """
        error = self.exception(timeout_s)
        if error is not None:
            raise error
        return self._checkpoint

    def _settle(self, checkpoint: Checkpoint | None, error: BaseException | None) -> None:
        self._checkpoint, self._error, self._inbox = checkpoint, error, None


class Inbox:
    """Reads what the node tells of checkpoints that were handed over. Safe for threads.

    Whoever waits reads for all; what nobody refers to any more is read and forgotten.

    Args:
        connection: The worker's end of the socket for open files.
        open_checkpoint: The checkpoint of a name.
    """

    def __init__(self, connection: socket.socket, open_checkpoint: Callable[[str], Checkpoint]) -> None:
        self._socket = connection
        self._open_checkpoint = open_checkpoint
        self._buffer = bytearray()
        self._pending: weakref.WeakValueDictionary[int, PendingCheckpoint] = weakref.WeakValueDictionary()
        # The lock itself where nobody waits: it is C code, which an interrupt leaves either taken or not.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._is_read = False

    def expect(self, index: int) -> PendingCheckpoint:
        """The checkpoint of a report whose outcome will come."""
        with self._lock:
            pending = self._pending[index] = PendingCheckpoint(inbox=self)
        return pending

    def look(self) -> None:
        """Takes in what has come, without waiting."""
        with self._lock:
            if not self._is_read:
                self._read_available()

    def wait_for(self, pending: PendingCheckpoint, timeout_s: float | None) -> None:
        """Returns once the outcome is known.

        Raises:
            WaitTimeoutError: It is not, after `timeout_s`.
            DriverLostError: The node is gone.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            reads = False
            try:
                with self._lock:
                    if not self._is_read:
                        self._read_available()
                    if pending._inbox is None:
                        return
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise WaitTimeoutError(
                            f"the checkpoint is not committed after {timeout_s:g} s; it is still on its way: wait longer, or go on"
                        )
                    if self._is_read:
                        self._changed.wait(left)
                        continue
                    reads = self._is_read = True
                select.select([self._socket], [], [], left)
            finally:
                if reads:
                    with self._lock:
                        self._is_read = False
                        self._changed.notify_all()

    def _read_available(self) -> None:
        while True:
            try:
                count = read_into(self._buffer, self._socket, _CHUNK_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                raise DriverLostError(f"the driver of this worker is gone ({error})") from error
            if not count:
                raise DriverLostError("the driver of this worker is gone")
        head = protocol.HEADER.size
        while len(self._buffer) >= head:
            end = head + protocol.HEADER.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            settled = _decode(bytes(self._buffer[head:end]))
            pending = self._pending.get(settled.index)
            if pending is not None:
                self._end(pending, settled)
            # Last: an interrupt before it has this read again, and takes nothing from whoever waits for it.
            del self._buffer[:end]

    def _end(self, pending: PendingCheckpoint, settled: protocol.Settled) -> None:
        if settled.kind:
            pending._settle(None, error_of(settled.kind, settled.text))
        else:
            name = settled.checkpoint
            pending._settle(self._open_checkpoint(name) if name is not None else None, None)
        self._pending.pop(settled.index, None)
