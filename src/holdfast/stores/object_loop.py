"""The event loop of this process on which requests to object stores run, and its thread; neither is forked, and both end before the
interpreter does.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVarTuple

_Ts = TypeVarTuple("_Ts")
_STOP_S = 1.0
_MOMENT_S = 0.001


class Loop(asyncio.SelectorEventLoop):
    """Counts who is about to wake it.

    The library's threads bring their answers so. What they bring is seen before they are back, and a thread that then finds that the
    interpreter has begun to end takes the process along (up to Python 3.13).
    """

    num_waking = 0

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As every loop does it, and counted while it lasts."""
        self.num_waking += 1
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        finally:
            # The last step: from here on a thread holds the interpreter until it needs it no more.
            self.num_waking -= 1


class _Process:
    """The loop of this process, and its thread: made at first use.

    Attributes:
        running: The loop, where it has been made.
    """

    def __init__(self) -> None:
        self.running: Loop | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._left_behind: Loop | None = None

    def loop(self) -> Loop:
        """The loop, which runs."""
        found = self.running
        if found is not None:
            return found
        with self._lock:
            if self.running is None:
                loop = Loop()
                # A daemon, so that a process whose main thread is done need not wait for a server.
                self._thread = threading.Thread(target=self._serve, args=(loop,), name="holdfast-requests", daemon=True)
                self._thread.start()
                self.running = loop
            return self.running

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()
        loop.close()

    def stop(self) -> None:
        """Ends the thread, for an interpreter that is about to end must not find it in the middle of something."""
        loop, thread, self.running = self.running, self._thread, None
        if loop is not None and thread is not None and thread.is_alive():
            loop.call_soon_threadsafe(self._give_up, loop)
            thread.join(_STOP_S)
            end_s = time.monotonic() + _STOP_S
            while loop.num_waking and time.monotonic() < end_s:
                time.sleep(_MOMENT_S)

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)

    def forget(self) -> None:
        """In a forked child: the thread was left behind."""
        self._lock = threading.Lock()
        if self.running is not None:
            # Closed, or collected as garbage, it would take its descriptors out of what the parent's waits for.
            self._left_behind = self.running
        self.running = self._thread = None


process = _Process()
atexit.register(process.stop)
os.register_at_fork(after_in_child=process.forget)
