"""What several threads wait for together, so that another one can end all their waits at once.

A signal's handler raises in the main thread alone, and the error of one thread is no news to the others: each would wait for a silent
server until its time limit is over.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any


class Waits:
    """The requests that some threads have begun, and begin yet."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._begun: set[Future[Any]] = set()
        self._is_over = False

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """What this thread begins in the block belongs to them."""
        before, _thread.waits = _thread.waits, self
        try:
            yield
        finally:
            _thread.waits = before

    def break_off(self) -> None:
        """Cancels what was begun, and whatever is begun from now on."""
        with self._guard:
            self._is_over = True
            begun = list(self._begun)
        for future in begun:
            future.cancel()

    def add(self, future: Future[Any]) -> None:
        """A request has begun."""
        with self._guard:
            is_over = self._is_over
            self._begun.add(future)
        if is_over:
            future.cancel()
        # Without the lock, which it may take at once.
        future.add_done_callback(self._remove)

    def _remove(self, future: Future[Any]) -> None:
        with self._guard:
            self._begun.discard(future)


class _Thread(threading.local):
    waits: Waits | None = None


_thread = _Thread()


def belongs(future: Future[Any]) -> None:
    """A request has begun in this thread: it ends with the others, where the thread waits together with some."""
    if _thread.waits is not None:
        _thread.waits.add(future)
