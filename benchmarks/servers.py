"""Servers as processes of this machine, on 127.0.0.1, that end with what is measured on them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.process import JobError

_START_S = 60.0
_LAST_BYTES = 2000


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], log: Path, *, port: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a program, and kills it at the end.

    Args:
        log: Where its output goes.
        port: It is waited for until it takes connections there.
        environment: All of its environment; ours without one.

    Raises:
        JobError: It does not take connections.
    """
    # The kernel ends it should this process be killed: nobody else would.
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "KILL", *command]
    with open(log, "ab") as output:
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


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise JobError(f"{process.args!r} takes no connections; it said:\n{end_of(log)}") from None
            time.sleep(0.05)
