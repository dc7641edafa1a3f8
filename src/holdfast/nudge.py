"""Has Python see to its signals, wherever the main thread waits."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Self

# By default it is ignored: one that comes too late does nothing.
NUDGE = signal.SIGURG
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0


class Nudge:
    """Interrupts the main thread's waits until it has seen to the signals that have come.

    A signal is noted in C, and its handler is called between two of the main thread's instructions. One that is noted after the
    last look and before the wait (of `sleep`, a lock, a socket) begins is seen to when the wait ends, which may be never. The moment
    is short, but the thread may be held up in it: it hands the interpreter's lock to another thread there.

    So a thread hears of each signal as well, and sends the main thread another one, again and again, until that one's handler was
    called: all that were noted are seen to at once.

    Used in the main thread, as a context manager.

    Args:
        signals: Those that matter.
        nudged: Called in the main thread at each time, between two of its instructions; what it raises is raised there.
    """

    def __init__(self, signals: Collection[int], nudged: Callable[[], None]) -> None:
        self._signals = frozenset(signals)
        self._nudged = nudged
        # A put may interrupt a put.
        self._seen: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="holdfast-signals", daemon=True)

    def __enter__(self) -> Self:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        self._earlier = signal.signal(NUDGE, self._see)
        # Python writes the numbers of signals to it, in C.
        self._earlier_wake = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over = True
        self._seen.put(None)
        self.soon()
        self._thread.join()
        signal.set_wakeup_fd(self._earlier_wake)
        signal.signal(NUDGE, self._earlier if self._earlier is not None else signal.SIG_DFL)
        os.close(self._in)
        os.close(self._out)

    def soon(self) -> None:
        """Nudges the main thread though no signal has come. Safe from any thread."""
        with contextlib.suppress(BlockingIOError):  # full: it is about to be
            os.write(self._in, b"\0")

    def _see(self, signum: int, frame: FrameType | None) -> None:
        self._seen.put(None)
        self._nudged()

    def _run(self) -> None:
        while True:
            numbers = os.read(self._out, 4096)
            if self._is_over:
                return
            if self._earlier_wake >= 0:
                with contextlib.suppress(OSError):
                    os.write(self._earlier_wake, numbers.replace(b"\0", b""))
            if any(number == 0 or number in self._signals for number in numbers):
                self._nudge()

    def _nudge(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._seen.get_nowait()
        pause_s = FIRST_PAUSE_S
        while not self._is_over:
            signal.pthread_kill(threading.main_thread().ident or 0, NUDGE)
            try:
                self._seen.get(timeout=pause_s)
            except queue.Empty:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)  # a long call in C, which looks at no signal
            else:
                return
