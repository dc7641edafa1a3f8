"""How many requests are on their way to a bucket at once: fewer when it says that they are too many, then one by one more.

The rule is that of TCP (additive increase, multiplicative decrease): half after a refusal, one more after two rounds of successes. Above
what is usual there are more only while more of them bring more answers a second: so it is where answers take long, and not where the server
has as much to do as it can. All work belongs to the loop of `object_calls`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

_log = logging.getLogger("holdfast")
_MOST = 256
_USUAL = 64
_LEAST = 4.0
_MORE_PER_ROUND = 0.5
_GROWTH = 1.25
_GAIN = 1.1
_TELL_EVERY_S = 60.0


class Gate:
    """Lets requests through.

    Args:
        name: What they go to, as the log calls it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit = float(_USUAL)
        self._running = 0
        self._waiting: deque[Callable[[], bool]] = deque()
        self._answered = 0
        self._round_began_s = 0.0
        self._best_per_s = 0.0
        self._halved_s = float("-inf")
        self._told_s = float("-inf")

    @property
    def limit(self) -> int:
        """How many may be on their way."""
        return int(self._limit)

    def enter(self, send: Callable[[], bool]) -> None:
        """Calls `send`, now or when there is room; where it says that it has sent something, `leave` is to be called once."""
        if self._running < self.limit:
            if send():
                self._running += 1
        else:
            self._waiting.append(send)

    def leave(self) -> None:
        """A request is over."""
        self._running -= 1
        while self._waiting and self._running < self.limit:
            # Here and not by a `leave` of its own: of thousands that were cancelled each would call the next.
            if self._waiting.popleft()():
                self._running += 1

    def succeeded(self) -> None:
        """A request was answered."""
        if self._limit < _USUAL:
            self._limit = min(_USUAL, self._limit + _MORE_PER_ROUND / self._limit)
        elif self._limit < _MOST:
            self._count()

    def _count(self) -> None:
        """Lets more through where that has brought more answers in the time; a round is as many answers as may be on their way."""
        if not self._waiting:  # then it is not the limit that decides
            self._answered = 0
            return
        if self._answered == 0:
            self._round_began_s = time.monotonic()
        self._answered += 1
        if self._answered <= self.limit:
            return
        per_s = self.limit / (time.monotonic() - self._round_began_s)
        self._answered = 0
        if per_s > _GAIN * self._best_per_s:
            self._best_per_s = per_s
            self._limit = min(_MOST, self._limit * _GROWTH)

    def refused(self, sent_s: float) -> None:
        """A request was told that there are too many.

        Args:
            sent_s: When it was let through. Those that were on their way when the limit was halved say nothing of the new one.
        """
        if sent_s < self._halved_s:
            return
        now_s = self._halved_s = time.monotonic()
        self._limit = max(_LEAST, min(self._limit, max(self._running, 2 * _LEAST)) / 2)
        if now_s - self._told_s > _TELL_EVERY_S:
            self._told_s = now_s
            _log.warning("%s says that requests come too fast; fewer are sent at once until it takes more", self._name)


class OpenGate:
    """Lets everything through, and passes on what it hears."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def enter(self, send: Callable[[], bool]) -> None:
        """Calls `send`."""
        send()

    def leave(self) -> None:
        """A request is over."""

    def succeeded(self) -> None:
        """A request was answered: a record says little of what files may do."""

    def refused(self, sent_s: float) -> None:
        """A request was told that there are too many."""
        self._gate.refused(sent_s)
