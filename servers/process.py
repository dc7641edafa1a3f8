"""Servers as processes of this machine, on 127.0.0.1, that end with those who use them, however these end."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_S = 180.0
_LAST_BYTES = 2000
_TRIES = 200
# Below what Linux and macOS give to programs that ask for any port.
_PORTS = range(20_000, 32_000)


class ServerError(RuntimeError):
    """A server is not installed, does not start, or does not do what it is told."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now, nor will be given by the system before it is used."""
    for _ in range(_TRIES):
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError(f"none of {_TRIES} ports of 127.0.0.1 can be had")


@contextmanager
def running(
    command: Sequence[str],
    log: Path | None = None,
    *,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a program, and kills it at the end.

    Args:
        log: Where its output goes; to nowhere without one.
        port: It is waited for until it takes connections there.
        environment: All of its environment; ours without one.

    Raises:
        ServerError: It does not take connections.
    """
    # The kernel ends it should this process be killed: nobody else would. It counts from the thread that starts it.
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "KILL", *command]
    with open(log or os.devnull, "ab") as output:
        # A session of its own, so that Ctrl-C does not end it under those that use it.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        if port is not None:
            _await_port(process, port, log)
        yield process
    finally:
        process.kill()
        process.wait()


def end_of(log: Path) -> str:
    """The last of what a program has said."""
    return log.read_bytes()[-_LAST_BYTES:].decode(errors="replace")


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path | None) -> None:
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = f"; it said:\n{end_of(log)}" if log is not None else ""
                raise ServerError(f"{process.args!r} takes no connections{said}") from None
            time.sleep(0.05)
