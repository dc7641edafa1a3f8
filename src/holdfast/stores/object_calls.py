"""Requests that can be broken off: they run on a loop of their own, and the thread that needs the answer waits for a future.

In a blocking call of the library a thread hears of nothing, Ctrl-C included, until the server answers or its time limit is over,
which a server that is silent makes minutes. The wait for a future ends at once when a signal's handler raises; and when the run is to
end at once (`hurry`), what is on its way gets a few seconds more.

A write that is broken off may have happened, or happen yet. That is no new case: it is what a lost answer looks like, and nobody
takes it for a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, TypeVarTuple

from holdfast.stores.broken_off import belongs
from holdfast.stores.object_gate import Gate, OpenGate
from holdfast.stores.object_loop import process

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
# Once the end is to come at once: for all that is on its way, and then for each request that the end still needs.
_LAST_S = 3.0
_EACH_S = 1.0
_TELL_AFTER_S = 4.0
_LOOK_EVERY_S = 2.0
FIRST_RETRIES = 8
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
"""The pauses before a request is sent again grow from the one to the other."""


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
        limit_s: How long after the first try began, without the time in which it waited for its turn.
    """

    retries: int
    limit_s: float


class Calls:
    """The requests to one bucket. Safe for threads.

    Args:
        gate: Who lets them through.
        judge: What becomes of an error.
        patience: How long they are sent again. One that never answered is given up after a few times: it is not away, but wrong.
        tell: Told, on the loop, for how many seconds a request has not been answered, and why it is sent again; None where the server
            has said nothing at all.

    Attributes:
        has_answered: Whether any request had its answer.
        answered_s: When the last one had.
    """

    def __init__(
        self,
        gate: Gate,
        judge: Callable[[BaseException], Judgement],
        patience: Patience,
        tell: Callable[[BaseException | None, float], None],
    ) -> None:
        self.gate = gate
        self._open_gate = OpenGate(gate)
        self.judge = judge
        self.patience = patience
        self.has_answered = False
        self.answered_s = float("-inf")
        self._tell = tell
        self._until_s: float | None = None
        self._open: set[_Call[Any]] = set()
        self._begun: deque[_Call[Any]] = deque()
        self._told: asyncio.AbstractEventLoop | None = None
        self._watches = False

    def begin(
        self, request: Callable[[], Awaitable[_T]], *, once: bool = False, bulk: bool = False, slow: bool = False
    ) -> Future[_T]:
        """Begins a request; cancelling the future breaks it off.

        Args:
            request: Called on the loop, again for each try; what it awaits may take long, what it does may not.
            once: It is not tried again here.
            bulk: It goes through the gate. Records, signs of life above all, never wait for files.
            slow: It may take long though all is well, as those of files may.
        """
        future: Future[_T] = Future()
        gate = self.gate if bulk else self._open_gate
        retries = self.patience.retries if self.has_answered else min(self.patience.retries, FIRST_RETRIES)
        self._begun.append(_Call(self, gate, request, 0 if once else retries, future, is_slow=bulk or slow))
        # Waking the loop costs more than the rest of this: once for all that begin before it has come to them.
        loop = process.loop()
        if self._told is not loop:
            try:
                self._told = loop
                loop.call_soon_threadsafe(self._begin_all)
            except BaseException:  # a signal's, in between
                self._told = None
                # Once too often does no harm, and others may rely on it already.
                loop.call_soon_threadsafe(self._begin_all)
                raise
        belongs(future)
        return future

    def at_once(self, most: int) -> int:
        """How many requests one that makes several may have on their way; fewer than `most` where the store wants fewer."""
        return max(1, min(most, self.gate.limit))

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
        loop = process.running
        if loop is not None:
            loop.call_soon_threadsafe(self._shorten, loop)

    # What follows is for the calls, on the loop.

    def answered(self) -> None:
        """A request had its answer, or begins to have it."""
        self.has_answered = True
        self.answered_s = time.monotonic()

    def waits(self, error: BaseException, waited_s: float) -> None:
        """A request that failed so is about to be sent again."""
        if waited_s > _TELL_AFTER_S:
            self._tell(error, waited_s)

    def opened(self, call: _Call[Any]) -> float | None:
        """A call has begun; the seconds that it has, or None for as many as it takes."""
        self._open.add(call)
        if not self._watches:
            self._watch()
        return None if self._until_s is None else max(_EACH_S, self._until_s - time.monotonic())

    def closed(self, call: _Call[Any]) -> None:
        """A call is over."""
        self._open.discard(call)

    def _watch(self) -> None:
        self._watches = True
        asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        """One timer for all: one for each request would cost more than most requests."""
        silent_s = max((call.silent_s() for call in self._open), default=0.0)
        if silent_s > _TELL_AFTER_S:
            self._tell(None, silent_s)
        self._watches = False
        if self._open:
            self._watch()

    def _begin_all(self) -> None:
        # In this order: who finds that the loop was told has put its call where the lines below find it.
        self._told = None
        while self._begun:
            self._begun.popleft().begin()

    def _shorten(self, loop: asyncio.AbstractEventLoop) -> None:
        for call in self._open:
            loop.call_later(_LAST_S, call.break_off)


class _Call(Generic[_T]):
    """One request, all its tries; all of it belongs to the loop.

    By callbacks and not as a coroutine: a task, and what limits its time, cost more than most requests.
    """

    __slots__ = (
        "_began_s",
        "_calls",
        "_entered_s",
        "_future",
        "_gate",
        "_is_slow",
        "_pause_s",
        "_request",
        "_retries",
        "_running",
        "_sent_s",
    )

    def __init__(
        self,
        calls: Calls,
        gate: Gate | OpenGate,
        request: Callable[[], Awaitable[_T]],
        retries: int,
        future: Future[_T],
        *,
        is_slow: bool,
    ) -> None:
        # None when it is over: it refers to this in its turn, and nothing is to wait for the collector.
        self._future: Future[_T] | None = future
        self._calls = calls
        self._gate = gate
        self._request = request
        self._retries = retries
        self._is_slow = is_slow
        self._running: asyncio.Future[_T] | None = None
        self._began_s = self._entered_s = self._sent_s = 0.0
        self._pause_s = FIRST_PAUSE_S

    def begin(self) -> None:
        self._began_s = time.monotonic()
        limit_s = self._calls.opened(self)
        if limit_s is not None:
            asyncio.get_running_loop().call_later(limit_s, self.break_off)
        if self._future is not None:
            self._future.add_done_callback(self._let_go)
            self._enter()

    def break_off(self) -> None:
        """Its time is over."""
        if self._future is not None:
            self._end(error=BrokenOffError())

    def silent_s(self) -> float:
        """How long the server has owed an answer that takes no time."""
        if (
            self._is_slow or self._running is None or self._running.done()
        ):  # between two tries it has answered, if only by an error
            return 0.0
        return time.monotonic() - self._sent_s

    def _enter(self) -> None:
        self._entered_s = time.monotonic()
        self._gate.enter(self._send)

    def _send(self) -> bool:
        """Whether there is a request on its way now."""
        if self._future is None:  # while it waited for its turn
            return False
        self._sent_s = time.monotonic()
        # At the gate nobody has asked the server for anything, so it has not been silent.
        self._began_s += self._sent_s - self._entered_s
        try:
            self._running = asyncio.ensure_future(self._request())
        except BaseException as error:  # noqa: BLE001 - it is for who waits
            self._end(error=error)
            return False
        self._running.add_done_callback(self._answered)
        return True

    def _answered(self, running: asyncio.Future[_T]) -> None:
        gate = self._gate
        self._running = None
        error = None if running.cancelled() else running.exception()
        if self._future is None or running.cancelled():
            gate.leave()
            if self._future is not None:
                self._end(error=BrokenOffError())
            return
        if error is None:
            self._calls.answered()
            gate.succeeded()
            gate.leave()
            self._end(result=running.result())
            return
        judgement = self._calls.judge(error) if isinstance(error, Exception) else Judgement.FINAL
        if judgement is Judgement.TOO_MANY:
            gate.refused(self._sent_s)
        gate.leave()
        wait_s = random.uniform(FIRST_PAUSE_S, self._pause_s)
        lasts_s = time.monotonic() + wait_s - self._began_s
        if judgement is Judgement.FINAL or self._retries <= 0 or lasts_s > self._calls.patience.limit_s:
            self._end(error=error)
            return
        self._retries -= 1
        self._calls.waits(error, time.monotonic() - self._began_s)
        self._pause_s = min(3 * self._pause_s, LONGEST_PAUSE_S)
        asyncio.get_running_loop().call_later(wait_s, self._again)

    def _again(self) -> None:
        if self._future is not None:
            self._enter()

    def _end(self, *, result: Any = None, error: BaseException | None = None) -> None:
        future, self._future = self._future, None
        self._calls.closed(self)
        if self._running is not None:
            self._running.cancel()
        # Who waited may have gone in this very instant.
        with contextlib.suppress(InvalidStateError):
            if future is not None and error is not None:
                future.set_exception(error)
            elif future is not None:
                future.set_result(result)

    def _let_go(self, future: Future[_T]) -> None:
        if future.cancelled() and (loop := process.running) is not None:
            loop.call_soon_threadsafe(self._give_up)

    def _give_up(self) -> None:
        if self._future is not None:
            self._end()
