"""A proxy before an S3 server that fails as networks and servers fail, where a test says so."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
SLOW_DOWN = SLOW_DOWN % len(SLOW_DOWN.partition(b"\r\n\r\n")[2])
_STEP_BYTES = 1 << 18
_RANGE = re.compile(rb"\r\nrange: *bytes=(\S+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def answer(status: int, code: str, message: str = "said by the test", *, key: str = "") -> bytes:
    """An error of the server; with a key, one within the answer to a bulk deletion."""
    body = f"<Error><Key>{key}</Key><Code>{code}</Code><Message>{message}</Message></Error>"
    body = f"<DeleteResult>{body}</DeleteResult>" if key else body
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body.encode())}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


@dataclass
class Fault:
    """What goes wrong with some requests.

    Attributes:
        method: Of the requests that are meant; empty for any.
        contains: A part of their path, or of their headers.
        times: How many of them, from the first that comes; -1 for all.
        answers: What they are answered instead of being passed on; or what makes it from their body.
        loses_answer: They are passed on, and the answer is not.
        cuts_request_at: How many bytes of them are read before the connection breaks.
        cuts_answer_at: How many bytes of the answer come through before the connection breaks.
        stalls: They get no answer and no end.
        drops_header: A header that is taken from them, lower case.
        waits_for: They are held until this is set; then happens what else is said here, or they are passed on.
        passed_on: Set once the server has answered one of them.
    """

    method: str = ""
    contains: str = ""
    times: int = 1
    answers: bytes | Callable[[bytes], bytes] | None = None
    loses_answer: bool = False
    cuts_request_at: int | None = None
    cuts_answer_at: int | None = None
    stalls: bool = False
    drops_header: str = ""
    waits_for: threading.Event | None = None
    passed_on: threading.Event = field(default_factory=threading.Event)


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        tls: How it speaks to clients, where that is encrypted; to the server it never is.
        requests: The first line of each request that came, in order.
        ranges: The bytes that it asked for, as it said so; empty for all.
        bytes_per_s: What all connections together carry, in either direction; None for as much as they can.
    """

    port: int
    target_port: int
    tls: ssl.SSLContext | None = None
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    bytes_per_s: float | None = None
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _lane: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    def fail(self, fault: Fault) -> Fault:
        """From now on; one fault a request, the first that fits."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Passes everything on."""
        with self._lock:
            self._faults.clear()

    def count(self, method: str, contains: str = "") -> int:
        """How many such requests came."""
        return sum(line.startswith(f"{method} ") and contains in line for line in self.requests)

    def serve(self, client: socket.socket) -> None:
        """One connection, with one request."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(client)
            client.settimeout(30)
            if self.tls is not None:
                client = stack.enter_context(self.tls.wrap_socket(client, server_side=True))
            head = _read_head(client)
            if not head:
                return
            line = head.partition(b"\r\n")[0].decode()
            text = head.decode("latin-1")
            with self._lock:
                self.requests.append(line)
                self.ranges.append(found[1].decode() if (found := _RANGE.search(head)) else "")
                fault = next((each for each in self._faults if _fits(each, line, text)), Fault())
                fault.times -= 1
            self._handle(client, head, fault)

    def _handle(self, client: socket.socket, head: bytes, fault: Fault) -> None:
        length = int(found[1]) if (found := _LENGTH.search(head)) else 0
        head, _, body = head.partition(b"\r\n\r\n")
        if fault.cuts_request_at is not None:
            _read(client, fault.cuts_request_at - len(body))
            _reset(client)
            return
        body += _read(client, length - len(body), self._pass)
        if fault.stalls:
            self._ended.wait()
            return
        while fault.waits_for is not None and not fault.waits_for.wait(0.05):
            if self._ended.is_set():
                return
        if fault.answers is not None:
            client.sendall(fault.answers if isinstance(fault.answers, bytes) else fault.answers(body))
            return
        with socket.create_connection(("127.0.0.1", self.target_port), timeout=30) as server:
            dropped = ("connection:", f"{fault.drops_header}:") if fault.drops_header else ("connection:",)
            lines = [each for each in head.split(b"\r\n") if not each.decode("latin-1").lower().startswith(dropped)]
            server.sendall(b"\r\n".join(lines) + b"\r\nConnection: close\r\n\r\n" + body)
            response = b"".join(iter(lambda: server.recv(1 << 20), b""))
        fault.passed_on.set()
        if fault.loses_answer:
            _reset(client)
        elif fault.cuts_answer_at is not None:
            start = response.index(b"\r\n\r\n") + 4
            client.sendall(response[: start + fault.cuts_answer_at])
            _reset(client)
        else:
            for start in range(0, len(response), _STEP_BYTES):
                self._pass(len(response[start : start + _STEP_BYTES]))
                client.sendall(response[start : start + _STEP_BYTES])

    def _pass(self, num_bytes: int) -> None:
        """Returns when the line has carried so many bytes, in turns with the other connections."""
        if self.bytes_per_s is not None:
            with self._lane:
                self._ended.wait(num_bytes / self.bytes_per_s)


@contextmanager
def running_proxy(target_port: int, *, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A proxy before a port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(listener.getsockname()[1], target_port, tls)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            _start(lambda client=client: proxy.serve(client))

    thread = _start(accept)
    try:
        yield proxy
    finally:
        proxy._ended.set()
        # Closing alone does not wake who waits in accept.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _start(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def _fits(fault: Fault, line: str, text: str) -> bool:
    return fault.times != 0 and line.startswith(fault.method) and fault.contains in text


def _read_head(client: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        part = client.recv(1 << 16)
        if not part:
            return b""
        head += part
    return head


def _read(client: socket.socket, num_bytes: int, passes: Callable[[int], None] = lambda _: None) -> bytes:
    parts = []
    while num_bytes > 0:
        part = client.recv(min(num_bytes, _STEP_BYTES))
        if not part:
            break
        passes(len(part))
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def _reset(client: socket.socket) -> None:
    """Ends a connection as a crash does, not as a good-bye."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
