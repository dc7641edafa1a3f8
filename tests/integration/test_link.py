"""The link of the benchmarks: it passes on what it gets, and never sooner than it should."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from servers.link import CONNECTION_BYTES_PER_S, LATENCY_S, running_link

_ASKED_BYTES = 1 << 20


@pytest.fixture
def port() -> Iterator[int]:
    """A link to a server that sends back each message of so many bytes when it has come whole."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_echo, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        with running_link(listener.getsockname()[1]) as found:
            yield found
        listener.shutdown(socket.SHUT_RDWR)


def _echo(connection: socket.socket) -> None:
    with connection:
        while message := _receive(connection, _ASKED_BYTES):
            connection.sendall(message)


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < num_bytes and (data := connection.recv(num_bytes - len(found))):
        found += data
    return bytes(found)


def _ask(port: int, message: bytes, times: int) -> tuple[float, bool]:
    """The seconds of it, and whether all came back as it was sent."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begin = time.monotonic()
        right = True
        for _ in range(times):
            connection.sendall(message)
            right &= _receive(connection, len(message)) == message
        return time.monotonic() - begin, right


def test_a_connection_takes_the_time_of_its_bytes_and_of_each_answer(port: int) -> None:
    took_s, is_right = _ask(port, os.urandom(_ASKED_BYTES), 3)
    assert is_right
    assert took_s >= 3 * (2 * _ASKED_BYTES / CONNECTION_BYTES_PER_S + LATENCY_S)


def test_connections_mix_nothing_up(port: int) -> None:
    messages = [os.urandom(_ASKED_BYTES) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert all(is_right for _, is_right in pool.map(lambda message: _ask(port, message, 1), messages))


def test_who_goes_is_seen_at_the_other_end(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(60)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
