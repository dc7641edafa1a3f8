"""A thread that writes to a terminal or file so that nobody else waits for one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

_log = logging.getLogger("holdfast")
_MAX_LINES = 10_000
_CLOSE_S = 2.0


@dataclass(frozen=True)
class Line:
    """A line to show; `from_stdout` marks what a worker printed to its standard output."""

    text: str
    from_stdout: bool = False


class Screen(Protocol):
    """Where lines end up; used by the writer's thread alone."""

    def show(self, lines: list[Line]) -> None:
        """Writes lines, and draws anew what changes."""

    def end(self) -> None:
        """Leaves the terminal as it was."""


class Writer:
    """Takes lines from any thread and writes them from one of its own, started with the first.

    When the terminal does not take them (a stopped one, a full pipe), the oldest are dropped and counted: workers'
    output is kept in the run's log files anyway. When it is gone, writing ends in silence.
    """

    def __init__(self, screen: Screen, *, interval_s: float, due: Callable[[], float | None]) -> None:
        """Makes a writer that has not started.

        Args:
            interval_s: Shortest time between two writes.
            due: Called by the thread before each write; may add lines by `put`. Returns in how many seconds it wants
                to be called again, or None.
        """
        self._screen = screen
        self._interval_s = interval_s
        self._due = due
        self._lines: deque[Line] = deque(maxlen=_MAX_LINES)
        self._num_put = 0
        self._num_taken = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_over = False

    def put(self, text: str, *, from_stdout: bool = False) -> None:
        """Queues a line; nothing once closed."""
        if self._is_over:
            return
        with self._lock:
            self._lines.append(Line(text, from_stdout))
            self._num_put += 1
        self.wake()

    def wake(self) -> None:
        """Has the thread look soon; costs next to nothing when it is about to."""
        if self._wake.is_set() or self._is_over:
            return
        self._wake.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closing.is_set():
                    self._thread = threading.Thread(target=self._run, name="holdfast-progress", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Writes what is queued, or gives up after two seconds (a terminal that takes nothing)."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_S)
        self._is_over = True

    def _run(self) -> None:
        try:
            wait_s: float | None = None
            while not self._closing.is_set():
                self._wake.wait(wait_s)
                self._wake.clear()
                wait_s = self._due()
                self._screen.show(self._take())
                self._closing.wait(self._interval_s)
            self._due()
            self._screen.show(self._take())
            self._screen.end()
        except (OSError, ValueError) as error:
            # A broken pipe or a closed file: whoever looked has gone, and the training goes on without.
            _log.debug("the progress display ended: %s", error)
            self._abandon()
        finally:
            self._is_over = True
            self._lines.clear()

    def _abandon(self) -> None:
        try:
            self._screen.end()  # the process's own stdout and stderr must come back even so
        except (OSError, ValueError) as error:
            _log.debug("… and could not be tidied: %s", error)

    def _take(self) -> list[Line]:
        with self._lock:
            lines = list(self._lines)
            self._lines.clear()
            num_lost = self._num_put - self._num_taken - len(lines)
            self._num_taken = self._num_put
        if num_lost:
            lines.insert(
                0, Line(f"… {num_lost} lines left out here; the run's log files hold all that workers printed")
            )
        return lines


def storable(text: str, stream: TextIO) -> str:
    """The text with what the stream's encoding does not know as escapes: a display never fails of a character."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
