"""How many requests are on their way to a bucket at once: fewer when it says that they are too many, then one by one more.

The rule is that of TCP (additive increase, multiplicative decrease): half after a refusal, one more after two rounds of successes. All
work belongs to the loop of `object_calls`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

_log = logging.getLogger("holdfast")
_MOST = 64
_LEAST = 4.0
_MORE_PER_ROUND = 0.5
_TELL_EVERY_S = 60.0


class Gate:
    """Lets requests through.

    Args:
        name: What they go to, as the log calls it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit = float(_MOST)
        self._running = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._halved_s = float("-inf")
        self._told_s = float("-inf")

    @property
    def limit(self) -> int:
        """How many may be on their way."""
        return int(self._limit)

    def enter(self, send: Callable[[], None]) -> None:
        """Calls `send`, now or when there is room; `leave` is to be called once for each."""
        if self._running < self.limit:
            self._running += 1
            send()
        else:
            self._waiting.append(send)

    def leave(self) -> None:
        """A request is over."""
        self._running -= 1
        while self._waiting and self._running < self.limit:
            self._running += 1
            self._waiting.popleft()()

    def succeeded(self) -> None:
        """A request was answered."""
        if self._limit < _MOST:
            self._limit = min(_MOST, self._limit + _MORE_PER_ROUND / self._limit)

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

    def enter(self, send: Callable[[], None]) -> None:
        """Calls `send`."""
        send()

    def leave(self) -> None:
        """A request is over."""

    def succeeded(self) -> None:
        """A request was answered: a record says little of what files may do."""

    def refused(self, sent_s: float) -> None:
        """A request was told that there are too many."""
        self._gate.refused(sent_s)
