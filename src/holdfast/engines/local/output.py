"""Carries what workers print to the driver: line by line, marked by rank, kept in files."""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import threading
import time
from collections.abc import Callable

from holdfast.errors import StorageError
from holdfast.persistence.logs import Logs
from holdfast.stores.base import AppendHandle

_CHUNK_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16
_LAST_LINES = 20
# A process that a worker left behind may hold its output open for ever.
_DRAIN_S = 1.0

LineHandler = Callable[[int, str, bool], None]


class _Stream:
    def __init__(self, rank: int, descriptor: int, *, is_stderr: bool) -> None:
        self.rank = rank
        self.descriptor = descriptor
        self.is_stderr = is_stderr
        self.partial = b""


class OutputPump:
    """Reads all workers' pipes in a thread of its own, so that a slow terminal never delays a report."""

    def __init__(self, logs: Logs, log_key: Callable[[int], str], on_line: LineHandler) -> None:
        """Starts nothing yet.

        Args:
            log_key: Where a rank's output is kept.
        """
        self._kept = logs
        self._log_key = log_key
        self._on_line = on_line
        self._selector = selectors.DefaultSelector()
        self._logs: dict[int, AppendHandle] = {}
        self._last: dict[int, collections.deque[str]] = {}
        self._closing_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="holdfast-output", daemon=True)
        self._wake_out, self._wake_in = os.pipe()
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._log_failed = False

    def add(self, rank: int) -> tuple[int, int]:
        """Makes pipes for a rank; returns the ends to write to (stdout, stderr), which the caller closes."""
        ends = []
        for is_stderr in (False, True):
            ours, theirs = os.pipe()
            os.set_blocking(ours, False)
            self._selector.register(ours, selectors.EVENT_READ, _Stream(rank, ours, is_stderr=is_stderr))
            ends.append(theirs)
        self._last[rank] = collections.deque(maxlen=_LAST_LINES)
        return ends[0], ends[1]

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def last_lines(self, rank: int) -> list[str]:
        """The last lines that a rank wrote to its stderr."""
        return list(self._last.get(rank, ()))

    def close(self) -> None:
        """Reads what is left and frees everything; the workers have ended."""
        self._closing_at = time.monotonic() + _DRAIN_S
        if self._thread.is_alive():
            os.write(self._wake_in, b"\0")
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()
        os.close(self._wake_in)
        for log in self._logs.values():
            with contextlib.suppress(StorageError):  # the training itself is over and saved
                log.close()

    def _run(self) -> None:
        open_streams = len(self._selector.get_map()) - 1
        is_last = False
        while open_streams and not is_last:
            timeout = None
            if self._closing_at is not None:
                timeout = max(0.0, self._closing_at - time.monotonic())
                # However late it is: what lies in the pipes is read.
                is_last = timeout == 0
            for key, _ in self._selector.select(timeout):
                stream = key.data
                if stream is None:
                    os.read(self._wake_out, 16)
                elif not self._read(stream):
                    self._selector.unregister(stream.descriptor)
                    os.close(stream.descriptor)
                    open_streams -= 1
        self._end_lines()

    def _end_lines(self) -> None:
        """Delivers lines that have no end yet, and whose end nobody waits for any more."""
        for key in self._selector.get_map().values():
            stream = key.data
            if stream is not None and stream.partial:
                line, stream.partial = stream.partial, b""
                self._deliver(stream, [line])

    def _read(self, stream: _Stream) -> bool:
        try:
            data = os.read(stream.descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, stream.partial = (stream.partial + data).split(b"\n")
        if stream.partial and (not data or len(stream.partial) > _LONGEST_LINE_BYTES):
            lines.append(stream.partial)
            stream.partial = b""
        if lines:
            self._deliver(stream, lines)
        return bool(data)

    def _deliver(self, stream: _Stream, lines: list[bytes]) -> None:
        self._keep(stream.rank, b"\n".join(lines) + b"\n")
        for line in lines:
            # A progress bar rewrites its line; the last state of it is what a log wants.
            text = line.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1]
            if stream.is_stderr:
                self._last[stream.rank].append(text)
            self._on_line(stream.rank, text, stream.is_stderr)

    def _keep(self, rank: int, data: bytes) -> None:
        if self._log_failed:
            return
        try:
            log = self._logs.get(rank)
            if log is None:
                log = self._logs[rank] = self._kept.open(self._log_key(rank))
            log.write(data)
        except StorageError as error:
            # A full disk must not end training over its own log; the person sees the lines all the same.
            self._log_failed = True
            self._on_line(rank, f"holdfast: output is no longer kept in files: {error}", True)
