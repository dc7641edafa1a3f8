"""One end of a socket in the driver's loop: never blocks, keeps what cannot be sent yet."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.controller.reactor import READABLE, WRITABLE

if TYPE_CHECKING:
    from holdfast.controller.reactor import Reactor


class Duplex:
    """Sends frames, and calls back when there is something to read.

    Args:
        on_readable: Reads from the socket; called whenever it has something, or has ended.
    """

    def __init__(self, reactor: Reactor, connection: socket.socket, on_readable: Callable[[], object]) -> None:
        connection.setblocking(False)
        self._reactor = reactor
        self._socket = connection
        self._descriptor = connection.fileno()
        self._on_readable = on_readable
        self._outgoing = bytearray()
        self._reads = True
        self._watched = 0
        self._watch()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._descriptor < 0

    def read_on(self, reads: bool) -> None:
        """Goes on, or stops, calling back."""
        self._reads = reads
        self._watch()

    def send(self, frame: bytes) -> None:
        """Sends as much as fits and keeps the rest; an other end that is gone is no error."""
        if not self._outgoing:
            try:
                sent = self._socket.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent == len(frame):
                return
            frame = frame[sent:]
        self._outgoing += frame
        self._watch()

    def close(self) -> None:
        """Frees the socket; safe to repeat."""
        self._reactor.forget(self._descriptor)
        self._descriptor = -1
        self._socket.close()

    def _watch(self) -> None:
        events = (READABLE if self._reads else 0) | (WRITABLE if self._outgoing else 0)
        if events == self._watched or self._descriptor < 0:
            return
        self._watched = events
        if events:
            self._reactor.watch(self._descriptor, self._ready, events)
        else:
            self._reactor.forget(self._descriptor)

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            self._write()
        if events & READABLE:
            self._on_readable()

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._outgoing)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._outgoing)
        del self._outgoing[:sent]
        self._watch()
