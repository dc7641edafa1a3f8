"""Plain lines, for logs and for whoever pipes the output."""

from __future__ import annotations

import threading
import time
from typing import TextIO

from holdfast.metrics import decode_metrics
from holdfast.progress.status import Status, format_bytes, format_number
from holdfast.progress.writer import Line, Screen, Writer, storable

_VALUE_CHARACTERS = 40
COMMIT_LINE_S = 5.0
"""Commits are shown at most this often; the last one always is."""


class LineProgress:
    """One line an event."""

    _interval_s = 0.0

    def __init__(self, status: Status, stream: TextIO, worker_stream: TextIO) -> None:
        self._status = status
        self._writer = Writer(self._make_screen(stream, worker_stream), interval_s=self._interval_s, due=self._due)
        self._lock = threading.Lock()
        self._commit: str | None = None
        self._num_commits = 0
        self._commits_shown_s = float("-inf")

    def started(self, attempt: int, world_size: int, resumed_from: str | None) -> None:
        """See `Progress`."""
        self._status.attempt = attempt
        self._status.state = "training"
        workers = "1 worker" if world_size == 1 else f"{world_size} workers"
        source = f"from {resumed_from}" if resumed_from else "from the beginning"
        self._line(f"attempt {attempt} runs {source} on {workers}")

    def reported(self, report: int, metrics: bytes) -> None:
        """See `Progress`."""
        self._status.metrics = metrics
        self._status.report = report

    def uploading(self, name: str, total_bytes: int) -> None:
        """See `Progress`."""
        self._status.begin_upload(total_bytes)

    def uploaded_bytes(self, n: int) -> None:
        """See `Progress`."""
        with self._lock:
            self._status.uploaded_bytes += n

    def committed(self, name: str, size_bytes: int, seconds: float, score: float | None) -> None:
        """See `Progress`."""
        self._status.end_upload(score)
        text = f"{name} committed ({format_bytes(size_bytes)} in {seconds:.3g} s"
        if score is not None:
            text += f", {self._status.score_name()} {format_number(score)}"
        with self._lock:
            self._commit = f"{text})"
            self._num_commits += 1
        self._writer.wake()

    def worker_line(self, rank: int, text: str, is_stderr: bool) -> None:
        """See `Progress`."""
        self._writer.put(f"[rank {rank}] {text}", from_stdout=not is_stderr)

    def validation_line(self, name: str, text: str, is_stderr: bool) -> None:
        """See `Progress`."""
        self._writer.put(f"[validation of {name}] {text}", from_stdout=not is_stderr)

    def validated(self, name: str, metrics: bytes, seconds: float) -> None:
        """See `Progress`."""
        found = ", ".join(f"{key} {_short(value)}" for key, value in decode_metrics(metrics).items())
        self._line(f"{name} validated in {seconds:.3g} s{': ' if found else ''}{found}")

    def message(self, text: str) -> None:
        """See `Progress`."""
        self._line(f"warning: {text}")

    def failed(self, attempt: int, summary: str, will_restart: bool) -> None:
        """See `Progress`."""
        self._status.state = "restarting" if will_restart else "failed"
        self._status.upload = None
        self._show_commit()
        self._line(f"attempt {attempt} failed{' and is restarted' if will_restart else ''}: {summary}")

    def finished(self, summary: str) -> None:
        """See `Progress`."""
        self._status.state = "finished"
        self._show_commit()
        self._line(summary)

    def close(self) -> None:
        """See `Progress`."""
        self._show_commit()
        self._writer.close()

    def _make_screen(self, stream: TextIO, worker_stream: TextIO) -> Screen:
        return _LineScreen(stream, worker_stream)

    def _line(self, text: str) -> None:
        self._writer.put(f"[holdfast {self._status.run_name}] {text}")

    def _due(self) -> float | None:
        """Shows the newest commit if enough time has passed since the one before; else says when it will have."""
        with self._lock:
            if self._commit is None:
                return None
            wait_s = self._commits_shown_s + COMMIT_LINE_S - time.monotonic()
        if wait_s > 0:
            return wait_s
        self._show_commit()
        return None

    def _show_commit(self) -> None:
        with self._lock:
            text, num_commits = self._commit, self._num_commits
            self._commit, self._num_commits = None, 0
            if text is None:
                return
            self._commits_shown_s = time.monotonic()
        self._line(text if num_commits == 1 else f"{text}, and {num_commits - 1} before it")


def _short(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    text = str(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}…"


class _LineScreen:
    """Writes lines to two streams, flushing once for many."""

    def __init__(self, stream: TextIO, worker_stream: TextIO) -> None:
        self._stream = stream
        self._worker_stream = worker_stream

    def show(self, lines: list[Line]) -> None:
        used: dict[int, TextIO] = {}
        for line in lines:
            target = self._worker_stream if line.from_stdout else self._stream
            target.write(storable(line.text, target) + "\n")
            used[id(target)] = target
        for target in used.values():
            target.flush()

    def end(self) -> None:
        """Nothing to give back."""
