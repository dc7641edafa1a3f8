"""The driver's event loop: sockets, timers, results of threads and signals, all in one wait.

Not asyncio: `fit()` must run in a thread whose asyncio loop is already running (a notebook), and a report's round trip
is too short for a scheduler of coroutines.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import os
import selectors
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
Callback = Callable[[], None]
# Gets the events that the descriptor is ready for: READABLE, WRITABLE or both.
ReadyCallback = Callable[[int], None]
READABLE = selectors.EVENT_READ
WRITABLE = selectors.EVENT_WRITE


class Timer:
    """A call that is due; `cancel` takes it back."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """The call will not be made; safe to repeat."""
        self.callback = None


class Reactor:
    """Runs callbacks in one thread; `post` brings them from others."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._posted: collections.deque[Callback] = collections.deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._drain)

    def watch(self, descriptor: int, callback: ReadyCallback, events: int = READABLE) -> None:
        """Calls back whenever the descriptor is ready (readable includes its end); replaces an earlier watch."""
        if descriptor in self._selector.get_map():
            self._selector.modify(descriptor, events, callback)
        else:
            self._selector.register(descriptor, events, callback)

    def forget(self, descriptor: int) -> None:
        """Ends `watch`; safe to repeat."""
        if descriptor >= 0 and descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def post(self, callback: Callback) -> None:
        """Has the loop's thread call back soon. Safe from any thread and from a signal handler."""
        self._posted.append(callback)
        try:
            os.write(self._wake_in, b"\0")
        except BlockingIOError:
            return  # the pipe is full, so the loop is awake already
        except OSError:
            return  # closed: whoever posts now comes too late, and nobody waits for it

    def after(self, delay_s: float, callback: Callback) -> Timer:
        """Calls back once, when the delay is over."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def when_done(self, future: Future[T], callback: Callable[[Future[T]], None]) -> None:
        """Calls back in the loop's thread when a thread's result is there."""
        future.add_done_callback(lambda done: self.post(lambda: callback(done)))

    def run_until(self, finished: Callable[[], bool]) -> None:
        """Runs callbacks until `finished` says so; it is asked after every round."""
        while not finished():
            self.step()

    def step(self) -> None:
        """Waits for something to happen and runs what is due."""
        for key, events in self._selector.select(self._timeout_s()):
            key.data(events)
        while self._posted:
            self._posted.popleft()()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

    def _timeout_s(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._posted:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _drain(self, _: int) -> None:
        try:
            while os.read(self._wake_out, 4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Frees the descriptors; nothing runs afterwards."""
        self._selector.close()
        # Unknown before it is closed: a late `post` must not write into a file that gets the number next.
        descriptors = self._wake_in, self._wake_out
        self._wake_in = self._wake_out = -1
        for descriptor in descriptors:
            os.close(descriptor)
