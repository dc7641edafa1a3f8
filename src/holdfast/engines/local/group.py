"""Running workers of this machine, as the controller sees them."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from holdfast import nudge
from holdfast.controller.group import Exit, Listener, WorkerGroup
from holdfast.engines.local import memory
from holdfast.engines.local.child import STACKS_SIGNAL
from holdfast.engines.local.duplex import Duplex
from holdfast.engines.local.files import FileConnections
from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.reactor import Reactor, Timer
    from holdfast.engines.local.family import Family
    from holdfast.engines.local.output import OutputPump

_CHUNK_BYTES = 1 << 18
_HEADER_BYTES = protocol.HEADER.size


class Connection:
    """The controller's end of one worker's socket: questions in, answers out."""

    def __init__(self, reactor: Reactor, connection: socket.socket, rank: int, listener: Listener) -> None:
        self._duplex = Duplex(reactor, connection, self._read)
        self._socket = connection
        self._rank = rank
        self._listener = listener
        self._incoming = bytearray()

    def send(self, frame: bytes) -> None:
        """Sends or queues a frame; a worker that is gone is no error."""
        self._duplex.send(frame)

    def drain(self) -> None:
        """Delivers what a worker that has ended had still said."""
        while self._read():
            pass

    def close(self) -> None:
        """Frees the socket; safe to repeat."""
        self._duplex.close()

    def _read(self) -> bool:
        """Reads once; False when nothing more is to be had now."""
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._duplex.read_on(False)  # its exit follows from the zygote
            return False
        buffer = self._incoming
        if not buffer and len(data) >= _HEADER_BYTES and len(data) == _HEADER_BYTES + _body_bytes(data):
            self._deliver(data[_HEADER_BYTES:])  # one whole message, as nearly always
            return True
        buffer += data
        while len(buffer) >= _HEADER_BYTES:
            end = _HEADER_BYTES + _body_bytes(buffer)
            if len(buffer) < end:
                break
            body = bytes(buffer[_HEADER_BYTES:end])
            del buffer[:end]
            self._deliver(body)
        return True

    def _deliver(self, body: bytes) -> None:
        self._listener.on_message(self._rank, protocol.question_decoder.decode(body))


def _body_bytes(frame: bytes | bytearray) -> int:
    return int.from_bytes(frame[:_HEADER_BYTES], "little")


class LocalGroup(WorkerGroup):
    """Workers forked from (or started by) one zygote.

    Attributes:
        waits_for_output: Whether `close` waits, for a second at most, for what holds the workers' output open after their end.
    """

    def __init__(
        self, reactor: Reactor, family: Family, pump: OutputPump, port: socket.socket | None, listener: Listener
    ) -> None:
        """Takes what the group needs while it lives.

        Args:
            port: Holds the rendezvous port for this group; see `engine.reserve_port`.
        """
        self._reactor = reactor
        self._family = family
        self._pump = pump
        self._port = port
        self._listener = listener
        self._connections: dict[int, Connection] = {}
        self._files = FileConnections(reactor, listener, lambda rank: self._connections[rank].drain())
        self.waits_for_output = True
        self._tokens: dict[int, int] = {}
        self._interrupted: set[int] = set()
        self._nudges: Timer | None = None
        self._killed_before = memory.out_of_memory_kills()

    def start(self, jobs: Sequence[protocol.Job]) -> None:
        """Starts a worker a job.

        Raises:
            WorkerStartError: The zygote is gone.
        """
        for job in jobs:
            ours, theirs = socket.socketpair()
            files = self._files.add(job.rank)
            stdout, stderr = self._pump.add(job.rank)
            try:
                descriptors = theirs.fileno(), files.fileno(), stdout, stderr
                self._tokens[job.rank] = self._family.start(descriptors, self._ended_of(job.rank))
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
                files.close()
                os.close(stdout)
                os.close(stderr)
            self._connections[job.rank] = Connection(self._reactor, ours, job.rank, self._listener)
        self._pump.start()
        for job in jobs:
            self.send(job.rank, protocol.answer(0, protocol.body(job)))

    def send(self, rank: int, frame: bytes) -> None:
        """Sends or queues a frame."""
        connection = self._connections.get(rank)
        if connection is not None:
            connection.send(frame)

    def tell(self, rank: int, frame: bytes) -> None:
        """Sends or queues a frame on the socket for files."""
        self._files.tell(rank, frame)

    def files_closed(self, count: int) -> None:
        """Goes on reading where it was paused."""
        self._files.closed(count)

    def interrupt(self, ranks: Iterable[int]) -> None:
        """SIGINT to each of the workers, not to what it has started; then nudges, for the reason that `nudge` gives."""
        now = set(ranks)
        self._signal(now, signal.SIGINT)
        self._interrupted |= now
        if now:
            self._nudge_after(nudge.FIRST_PAUSE_S)

    def _nudge_after(self, pause_s: float) -> None:
        if self._nudges is not None:
            self._nudges.cancel()
        self._nudges = self._reactor.after(pause_s, lambda: self._nudge(pause_s))

    def _nudge(self, pause_s: float) -> None:
        self._signal(self._interrupted, nudge.NUDGE)
        self._nudge_after(min(2 * pause_s, nudge.LONGEST_PAUSE_S))

    def kill(self, ranks: Iterable[int] | None = None) -> None:
        """SIGKILL to the workers and all that they have started."""
        self._signal(self._tokens if ranks is None else ranks, signal.SIGKILL, group=True)

    def dump_stacks(self, ranks: Sequence[int]) -> None:
        """By a signal that a handler in C answers, so that a worker stuck in a library answers too."""
        self._signal(ranks, STACKS_SIGNAL)

    def close(self) -> None:
        """Frees sockets, pipes and the port."""
        if self._nudges is not None:
            self._nudges.cancel()
        for token in self._tokens.values():
            self._family.forget(token)
        for connection in self._connections.values():
            connection.close()
        self._files.close()
        if self._port is not None:
            self._port.close()
        if self.waits_for_output:
            self._pump.close()
        else:
            threading.Thread(target=self._pump.close, name="holdfast-last-lines", daemon=True).start()

    def _signal(self, ranks: Iterable[int], signum: int, *, group: bool = False) -> None:
        for rank in ranks:
            if rank in self._tokens:
                self._family.signal(self._tokens[rank], signum, group=group)

    def _ended_of(self, rank: int) -> Callable[[Exit], None]:
        def ended(exit_: Exit) -> None:
            # What it said before it ended may still lie in the socket, and goes first. What it handed over may have to wait.
            self._connections[rank].drain()
            self._connections[rank].close()
            detail = exit_.detail or self._detail(exit_.code)
            self._listener.on_exit(rank, Exit(exit_.code, detail, is_lost=exit_.is_lost))
            self._files.drain(rank)

        return ended

    def _detail(self, code: int) -> str:
        if code == -signal.SIGKILL and memory.out_of_memory_kills() > self._killed_before:
            return "the kernel's out-of-memory killer has struck meanwhile: use less memory, or fewer workers"
        return ""
