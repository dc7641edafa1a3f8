"""Requests that can be broken off: they run on a loop of their own, and the thread that needs the answer waits for a future.

In a blocking call of the library a thread hears of nothing, Ctrl-C included, until the server answers or its time limit is over,
which a server that is silent makes minutes. The wait for a future ends at once when a signal's handler raises; and when the run is to
end at once (`hurry`), what is on its way gets a few seconds more.

A write that is broken off may have happened, or happen yet. That is no new case: it is what a lost answer looks like, and nobody
takes it for a commit.
"""

from __future__ import annotations

import asyncio
import atexit
import enum
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast.stores.object_gate import Gate

_T = TypeVar("_T")
# Once the end is to come at once: for all that is on its way, and then for each request that the end still needs.
_LAST_S = 3.0
_EACH_S = 1.0
_STOP_S = 1.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0


class Judgement(enum.Enum):
    """What the failure of a request says of the next try."""

    FINAL = "it would fail as well"
    MAY_PASS = "it may succeed"
    TOO_MANY = "it may succeed, and there should be fewer at once"


class BrokenOffError(Exception):
    """The run was to end at once, and the store had not answered; a `StorageError` to everyone outside of this package."""


@dataclass(frozen=True)
class Patience:
    """How long a request is sent again that failed for a reason that passes.

    Attributes:
        retries: How often.
        limit_s: How long after the first try.
    """

    retries: int
    limit_s: float


class Calls:
    """The requests to one bucket. Safe for threads.

    Args:
        gate: Who lets them through.
        judge: What becomes of an error: `Judgement`.
        patience: How long they are sent again.
    """

    def __init__(self, gate: Gate, judge: Callable[[BaseException], Judgement], patience: Patience) -> None:
        self._gate = gate
        self._judge = judge
        self._patience = patience
        self._until_s: float | None = None
        self._limits: set[asyncio.Timeout] = set()

    def begin(self, request: Callable[[], Coroutine[Any, Any, _T]], *, once: bool = False) -> Future[_T]:
        """Begins a request; cancelling the future breaks it off.

        Args:
            request: Called on the loop, again for each try; what it awaits may take long, what it does may not.
            once: It is not tried again here.
        """
        return asyncio.run_coroutine_threadsafe(self._run(request, once), _process.loop())

    def at_once(self, most: int) -> int:
        """How many requests one that makes several may have on their way; fewer than `most` where the store wants fewer."""
        return max(1, min(most, self._gate.limit))

    def hurry(self, *, on: bool) -> None:
        """Few seconds are left for what is on its way, and a second for each request that begins later. Safe in a signal handler.

        Args:
            on: False takes it back.
        """
        if not on:
            self._until_s = None
            return
        if self._until_s is not None:  # said twice, it gives nobody more time
            return
        self._until_s = time.monotonic() + _LAST_S
        loop = _process.running
        if loop is not None:
            loop.call_soon_threadsafe(self._shorten, loop.time() + _LAST_S)

    async def _run(self, request: Callable[[], Coroutine[Any, Any, _T]], once: bool) -> _T:
        until_s = self._until_s
        limit = asyncio.timeout(None if until_s is None else max(_EACH_S, until_s - time.monotonic()))
        self._limits.add(limit)
        try:
            async with limit:
                return await self._try(request, 0 if once else self._patience.retries)
        except TimeoutError:
            if not limit.expired():
                raise
            raise BrokenOffError from None
        finally:
            self._limits.discard(limit)

    async def _try(self, request: Callable[[], Coroutine[Any, Any, _T]], retries: int) -> _T:
        began_s = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            sent_s = 0.0
            try:
                async with self._gate:
                    sent_s = time.monotonic()
                    found = await request()
            except Exception as error:
                judgement = self._judge(error)
                if judgement is Judgement.TOO_MANY:
                    self._gate.refused(sent_s)
                if judgement is Judgement.FINAL or retries <= 0:
                    raise
                retries -= 1
                wait_s = random.uniform(_FIRST_PAUSE_S, pause_s)
                if time.monotonic() + wait_s - began_s > self._patience.limit_s:
                    raise
                pause_s = min(3 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._gate.succeeded()
                return found
            await asyncio.sleep(wait_s)

    def _shorten(self, when: float) -> None:
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(when)


class _Process:
    """The loop of this process, and its thread: made at first use."""

    def __init__(self) -> None:
        self.running: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._left_behind: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        found = self.running
        if found is not None:
            return found
        with self._lock:
            if self.running is None:
                loop = asyncio.new_event_loop()
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
        loop, thread = self.running, self._thread
        if loop is not None and thread is not None and thread.is_alive():
            loop.call_soon_threadsafe(self._give_up, loop)
            thread.join(_STOP_S)

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


_process = _Process()
atexit.register(_process.stop)
os.register_at_fork(after_in_child=_process.forget)
