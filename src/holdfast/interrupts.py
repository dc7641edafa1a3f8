"""Ctrl-C and SIGTERM while `fit()` runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handle_interrupts(stop: Callable[[int], None]) -> Iterator[None]:
    """Sends SIGINT and SIGTERM to `stop` while the block runs; earlier handlers come back afterwards.

    Outside the main thread, where Python lets nobody set handlers, the program's own stay in force.

    Args:
        stop: Called with the signal's number, in the main thread between two of its instructions; what it raises is
            raised there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        stop(signum)

    earlier = {}
    try:
        for signum in _SIGNALS:
            # A shell starts what it puts into the background with `&` so; Ctrl-C is not meant for it.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                earlier[signum] = signal.signal(signum, handler)
        yield
    finally:
        for signum, old in earlier.items():
            # None: a handler that was not set from Python, which cannot be set back from it either.
            signal.signal(signum, old if old is not None else signal.SIG_DFL)
