"""Libraries as processes that do transfers when they are told to, and what each transfer took."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.object_server import ObjectServer
from benchmarks.process import JobError, cpu_seconds, forget_peaks, peak_mib
from benchmarks.side import JOBS, Side
from servers.process import end_of, running

_READY_S = 120.0
_ANSWER_S = 300.0


@dataclass(frozen=True)
class Shape:
    """A directory of files of one size."""

    num_files: int
    file_bytes: int

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return self.num_files * self.file_bytes

    @property
    def is_large(self) -> bool:
        """Whether it is bytes that take the time, and not files."""
        return self.file_bytes >= 1 << 20

    def write(self, directory: Path) -> None:
        """Makes the files; nothing in them repeats that a library or a server might notice."""
        directory.mkdir()
        block = os.urandom(min(self.file_bytes, 1 << 24))
        for number in range(self.num_files):
            with (directory / f"part-{number:05d}.bin").open("wb") as file:
                for start in range(0, self.file_bytes, len(block)):
                    file.write(block[: self.file_bytes - start])
        self.change(directory)

    def change(self, directory: Path) -> None:
        """Makes another checkpoint of it: what did not change since the last one need not be sent."""
        for path in directory.iterdir():
            with path.open("r+b") as file:
                file.write(os.urandom(16))

    def check(self, source: Path, copy: Path) -> None:
        """Compares what was brought back with what was sent, by sizes and by the first bytes, which are of this checkpoint alone.

        Raises:
            JobError: It is something else.
        """
        for path in source.iterdir():
            brought = copy / path.name
            if not brought.is_file() or brought.stat().st_size != self.file_bytes or _head(brought) != _head(path):
                raise JobError(f"{copy.name} has not {path.name} as it was sent")


@dataclass
class Took:
    """What the transfers of one library took, one figure each.

    Attributes:
        wall_s: Seconds on the wall.
        cpu_s: CPU seconds of the client's processes, without the server's.
        server_cpu_s: Those of the server's meanwhile.
        peak_mib: The most that one of its processes had resident.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    server_cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)


class Client:
    """A running library."""

    def __init__(
        self, whose: str, process: subprocess.Popen[bytes], lines: IO[str], log: Path, server_cpu_s: Callable[[], float]
    ) -> None:
        self.whose = whose
        self._server_cpu_s = server_cpu_s
        self._process = process
        self._lines = lines
        self._log = log

    def do(self, what: str, name: str = "", directory: Path | None = None, took: Took | None = None) -> None:
        """Has it do something, and adds what it took.

        Raises:
            JobError: It ended instead.
        """
        pid = self._process.pid
        forget_peaks(pid)
        cpu_s, server_cpu_s = cpu_seconds(pid), self._server_cpu_s()
        try:
            self._lines.write(json.dumps({"do": what, "name": name, "directory": str(directory or "")}) + "\n")
            self._lines.flush()
            answer = self._lines.readline()
        except OSError as error:
            raise JobError(f"{self.whose} did not {what} in {_ANSWER_S:.0f} s: {error}\n{end_of(self._log)}") from error
        if not answer:
            raise JobError(f"{self.whose} ended when it was to {what}; it said:\n{end_of(self._log)}")
        if took is not None:
            took.wall_s.append(json.loads(answer)["wall_s"])
            took.cpu_s.append(cpu_seconds(pid) - cpu_s)
            took.server_cpu_s.append(self._server_cpu_s() - server_cpu_s)
            took.peak_mib.append(peak_mib(pid))


@contextmanager
def running_client(
    whose: str, side: Side, directory: Path, storage: str, shape: Shape, server: ObjectServer
) -> Iterator[Client]:
    """Starts a library, and ends it with all that it started.

    Args:
        directory: Of the measure's own; its path is short.
        storage: Where the runs are to lie.
        server: Which it talks to.

    Raises:
        JobError: It does not start.
    """
    address, log, temporary = directory / f"{whose}.sock", directory / f"{whose}.out", directory / f"{whose}.tmp"
    temporary.mkdir()
    arguments = [str(address), storage, str(shape.num_files), str(shape.file_bytes)]
    command = [side.python, str(JOBS / "object_client.py"), side.name, str(directory), *arguments]
    variables = {**os.environ, **side.environment, **server.environment, "TMPDIR": str(temporary)}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(1)
        listener.settimeout(_READY_S)
        with running(command, log, environment=variables) as process:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                raise JobError(f"{whose} did not start; it said:\n{end_of(log)}") from None
            connection.settimeout(_ANSWER_S)
            with connection, connection.makefile("rw") as lines:
                yield Client(whose, process, lines, log, server.cpu_seconds)
            # Told by the end of the connection; a worker is to end before its driver is killed.
            _await_end(process)


def remove(path: Path) -> None:
    """Removes what a library has brought back, wherever that lies."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_READY_S)
    except subprocess.TimeoutExpired as error:
        raise JobError(f"{process.args!r} did not end") from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)
