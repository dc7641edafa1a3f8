"""Servers as processes of this machine that end with the test, or with whoever runs the tests, however that ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_S = 60.0
_LAST_BYTES = 2000


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], log: Path | None = None, *, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a program, and kills it at the end.

    Args:
        log: Where its output goes; to nowhere without one.
        environment: Of the program; that of the tests without one.
    """
    # The kernel ends it should this process be killed: nobody else would. It counts from the thread that starts it.
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "KILL", *command]
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_port(process: subprocess.Popen[bytes], port: int, log: Path | None = None) -> None:
    """Returns when a program takes connections; an error shows the end of what it said."""
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            name = " ".join(map(str, process.args[:4])) if isinstance(process.args, list) else str(process.args)
            said = log.read_bytes()[-_LAST_BYTES:].decode(errors="replace") if log else ""
            assert process.poll() is None, f"{name} ended at its start: {said}"
            assert time.monotonic() < deadline_s, f"{name} did not start: {said}"
            time.sleep(0.05)
