"""The node's ends of the sockets on which workers hand over open files."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.controller.group import Listener
from holdfast.engines.local.duplex import Duplex
from holdfast.errors import StorageError
from holdfast.persistence.open_files import RaisedLimit, most_open_files
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

    A program may open a limited number of files; half of them are for those that were handed over. While all of that
    half is in use nothing more is read from the sockets, so that `report` waits in the worker and no file is lost.

    Args:
        drain_calls: Delivers what a rank has said so far on its other socket. The report that files belong to was sent there before
            them, and may not have been read.
    """

    def __init__(self, reactor: Reactor, listener: Listener, drain_calls: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._listener = listener
        self._drain_calls = drain_calls
        self._ends: dict[int, _End] = {}
        self._num_open = 0
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
        was_full = self._num_open >= self._budget()
        self._num_open -= count
        if was_full:
            self._watch()

    def drain(self, rank: int) -> None:
        """Delivers what a worker that has ended had still handed over, and closes its socket."""
        while self._read(rank):
            pass
        self._end(rank)

    def close(self) -> None:
        """Frees everything; safe to repeat."""
        for rank in self._ends:
            self._end(rank)
        if self._limit is not None:
            self._limit.restore()
            self._limit = None

    def _end(self, rank: int) -> None:
        end = self._ends[rank]
        end.duplex.close()
        end.receiver.close()

    def _read(self, rank: int) -> bool:
        """Reads once; False when nothing is to be had now."""
        end = self._ends[rank]
        if end.duplex.is_closed or end.receiver.at_end:
            return False
        if self._limit is None:
            self._limit = RaisedLimit()
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
        if self._num_open >= self._budget():
            self._watch()
        return got

    def _watch(self) -> None:
        has_room = self._num_open < self._budget()
        for end in self._ends.values():
            end.duplex.read_on(has_room and not end.receiver.at_end)

    def _budget(self) -> int:
        return max(1, most_open_files() // 2)
