"""The node's ends of the sockets on which workers hand over open files."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from holdfast.controller.group import Listener
from holdfast.engines.local.duplex import Duplex
from holdfast.errors import StorageError, WorkerDiedError
from holdfast.persistence.open_files import RaisedLimit, free_files
from holdfast.worker import protocol
from holdfast.worker.handover import Receiver

if TYPE_CHECKING:
    from holdfast.controller.reactor import Reactor


@dataclass(frozen=True)
class _End:
    duplex: Duplex
    receiver: Receiver


class FileConnections:
    """All workers' sockets for open files, under one budget of descriptors.

    A program may open a limited number of files; half of those that are left are for what was handed over. While all of that
    half is in use nothing more is read from the sockets: the kernel would throw away what cannot be opened. `report` waits in the
    worker, and what a worker that has ended left in its socket waits there.

    Args:
        drain_calls: Delivers what a rank has said so far on its other socket. The report that files belong to was sent there before
            them, and may not have been read.
    """

    def __init__(self, reactor: Reactor, listener: Listener, drain_calls: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._listener = listener
        self._drain_calls = drain_calls
        self._ends: dict[int, _End] = {}
        # The ranks that have ended, while their sockets are not read to the end.
        self._ended: set[int] = set()
        self._num_open = 0
        self._budget = 1
        self._is_full = False
        self._limit: RaisedLimit | None = None

    def add(self, rank: int) -> socket.socket:
        """A worker's end of a new socket, which the caller closes when the worker has it."""
        ours, theirs = socket.socketpair()
        self._ends[rank] = _End(Duplex(self._reactor, ours, lambda: self._read(rank)), Receiver(ours))
        return theirs

    def tell(self, rank: int, frame: bytes) -> None:
        """Sends or queues a frame."""
        if (end := self._ends.get(rank)) is not None and not end.duplex.is_closed:
            end.duplex.send(frame)

    def closed(self, count: int) -> None:
        """So many descriptors were closed."""
        self._num_open -= count
        if self._is_full and self._num_open < self._budget:
            self._is_full = False
            self._watch()

    def drain(self, rank: int) -> None:
        """Delivers what a worker that has ended had still handed over, then that nothing follows; as there is room.

        What it has said on its other socket was delivered before.
        """
        self._ended.add(rank)
        self._ends[rank].duplex.read_on(False)
        self._drain(rank)

    def close(self) -> None:
        """Frees everything; safe to repeat."""
        self._ended.clear()
        for rank in self._ends:
            self._end(rank)
        if self._limit is not None:
            self._limit.restore()
            self._limit = None

    def _drain(self, rank: int) -> None:
        while rank in self._ended and not self._is_full:
            # Not until its end: a process that the worker has left behind may hold the other end open.
            if not self._read(rank):
                self._ended.discard(rank)
                self._end(rank)
                text = f"rank {rank} ended while it handed over the files of its checkpoint"
                self._listener.on_files(rank, protocol.Abandoned(-1, WorkerDiedError.kind, text), [])

    def _end(self, rank: int) -> None:
        end = self._ends[rank]
        end.duplex.close()
        end.receiver.close()

    def _read(self, rank: int) -> bool:
        """Reads once; False when nothing is to be had now."""
        end = self._ends[rank]
        # Full: another rank's files may have come since the loop saw that this one has something.
        if end.duplex.is_closed or end.receiver.at_end or self._is_full:
            return False
        if self._limit is None:
            self._limit = RaisedLimit()
            self._budget = max(1, free_files() // 2)
        got = False
        try:
            for message, descriptors in end.receiver.receive():
                if not got:
                    self._drain_calls(rank)
                got = True
                self._num_open += len(descriptors)
                self._listener.on_files(rank, message, descriptors)
        except OSError as error:
            # Which files are missing nobody can tell any more; of which reports, what was said before tells.
            self._end(rank)
            self._drain_calls(rank)
            self._listener.on_files(rank, protocol.Abandoned(-1, StorageError.kind, str(error)), [])
            return False
        if end.receiver.at_end:
            end.duplex.read_on(False)
        if self._num_open >= self._budget:
            self._is_full = True
            self._watch()
        return got

    def _watch(self) -> None:
        for rank, end in self._ends.items():
            if rank not in self._ended:
                end.duplex.read_on(not self._is_full and not end.receiver.at_end)
            elif not self._is_full:
                # Later: files may be closed while they are delivered, in the middle of a read.
                self._reactor.post(partial(self._drain, rank))
