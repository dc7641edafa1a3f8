"""A line on a terminal that is drawn anew, with all other output above it."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from holdfast.progress.lines import LineProgress
from holdfast.progress.status import Status
from holdfast.progress.writer import Line, Screen, storable

REDRAW_S = 0.1


class LiveProgress(LineProgress):
    """The live line, at most ten times a second; commits show in it and have no lines of their own."""

    _interval_s = REDRAW_S

    def reported(self, report: int, metrics: bytes) -> None:
        """See `Progress`."""
        super().reported(report, metrics)
        self._writer.wake()

    def uploading(self, name: str, total_bytes: int) -> None:
        """See `Progress`."""
        super().uploading(name, total_bytes)
        self._writer.wake()

    def uploaded_bytes(self, n: int) -> None:
        """See `Progress`."""
        super().uploaded_bytes(n)
        self._writer.wake()

    def committed(self, name: str, size_bytes: int, seconds: float, score: float | None) -> None:
        """See `Progress`."""
        self._status.end_upload(score)
        self._writer.wake()

    def _make_screen(self, stream: TextIO, worker_stream: TextIO) -> Screen:
        return _LiveScreen(self._status, stream, worker_stream)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the caller: Rich would point the whole process's stdout at /dev/null and exit."""
        raise BrokenPipeError("whoever read the display has gone")


class _LiveScreen:
    """Rich's live display without its own thread: the writer's thread does all the drawing."""

    def __init__(self, status: Status, stream: TextIO, worker_stream: TextIO) -> None:
        self._status = status
        self._stream = stream
        self._worker_stream = worker_stream
        self._console = _Console(file=stream, force_terminal=True, markup=False, highlight=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._separator = " · " if (self._console.encoding or "").startswith("utf") else " | "

    def show(self, lines: list[Line]) -> None:
        self._fit()
        if not self._live.is_started:
            self._live.start()
        for line in lines:
            if line.from_stdout and not _is_terminal(self._worker_stream):
                self._worker_stream.write(storable(line.text, self._worker_stream) + "\n")
                self._worker_stream.flush()
            else:
                self._console.print(Text.from_ansi(storable(line.text, self._stream)), soft_wrap=True)
        text = storable(self._separator.join(self._status.parts()).replace("\n", " "), self._stream)
        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def end(self) -> None:
        self._live.stop()

    def _fit(self) -> None:
        """Takes the width of our own stream: Rich asks the process's standard streams, which may lie elsewhere."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):  # no terminal after all, or one without a size
            return
        if columns > 0:
            self._console.width = columns


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()
