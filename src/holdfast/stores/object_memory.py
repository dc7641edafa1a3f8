"""The memory that this process gives to what is on its way to and from object stores."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

_DEFAULT_MIB = 256
_ASK_AGAIN_S = 0.5
_TELL_AFTER_S = 30.0
_log = logging.getLogger("holdfast")


class Borrower(Protocol):
    """Who holds memory for what it may need later, and can do without."""

    def give_way(self) -> None:
        """Gives back what it does not use at this moment; never waits. Called from any thread."""


class MemoryBudget:
    """A number of bytes that transfers share; who finds too little left waits, or does with less.

    Args:
        limit_bytes: The most that is out at once. A single transfer that needs more gets all of it, alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._num_waiting = 0
        self._freed = threading.Condition()
        self._borrowers: weakref.WeakSet[Borrower] = weakref.WeakSet()
        self._told_s = float("-inf")

    def lend_to(self, borrower: Borrower) -> None:
        """From now on it is asked to give way while somebody waits, for as long as it lives."""
        with self._freed:
            self._borrowers.add(borrower)

    @contextlib.contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Takes bytes for as long as the block runs; waits until they are there."""
        num_bytes = min(num_bytes, self.limit_bytes)
        self.take(num_bytes)
        try:
            yield
        finally:
            self.give_back(num_bytes)

    def take(self, num_bytes: int) -> None:
        """Takes bytes, no more than the limit, when they are there; `give_back` returns them. Only for who has none."""
        with self._freed:
            if self._fits(num_bytes):
                self._used_bytes += num_bytes
                return
            self._num_waiting += 1
        try:
            self._wait_for(num_bytes)
        finally:
            with self._freed:
                self._num_waiting -= 1

    def try_take(self, num_bytes: int) -> bool:
        """Takes bytes if they are there now and nobody waits for some; `give_back` returns them."""
        with self._freed:
            if self._num_waiting or not self._fits(num_bytes):
                return False
            self._used_bytes += num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """Returns what was taken."""
        with self._freed:
            self._used_bytes -= num_bytes
            self._freed.notify_all()

    def _fits(self, num_bytes: int) -> bool:
        return self._used_bytes + num_bytes <= self.limit_bytes

    def _wait_for(self, num_bytes: int) -> None:
        """Whoever holds some moves data under the time limits of its client, or is a borrower; so this ends."""
        since_s = time.monotonic()
        while True:
            with self._freed:
                borrowers = list(self._borrowers)
            for borrower in borrowers:  # without the lock, for they give back
                borrower.give_way()
            with self._freed:
                # Asked again soon: who was busy then may be idle now.
                if self._freed.wait_for(lambda: self._fits(num_bytes), _ASK_AGAIN_S):
                    self._used_bytes += num_bytes
                    return
            self._tell(time.monotonic() - since_s, num_bytes)

    def _tell(self, waited_s: float, num_bytes: int) -> None:
        with self._freed:
            if waited_s < _TELL_AFTER_S or time.monotonic() - self._told_s < 2 * _TELL_AFTER_S:
                return
            self._told_s = time.monotonic()
        _log.warning(
            "a transfer to or from an object store has waited %.0f s for %d MiB of memory: other transfers hold %d of the %d MiB that "
            "all share. It goes on when one of them ends; HOLDFAST_OBJECT_MEMORY_MIB gives them more",
            waited_s,
            num_bytes >> 20,
            self._used_bytes >> 20,
            self.limit_bytes >> 20,
        )


def _limit_bytes() -> int:
    text = os.environ.get("HOLDFAST_OBJECT_MEMORY_MIB", "")
    return (int(text) if text.isdecimal() and int(text) > 0 else _DEFAULT_MIB) << 20


class _Process:
    """This process's budget; a forked child begins with one of its own."""

    def __init__(self) -> None:
        self.budget = MemoryBudget(_limit_bytes())

    def renew(self) -> None:
        self.budget = MemoryBudget(_limit_bytes())


_process = _Process()
os.register_at_fork(after_in_child=_process.renew)


def budget() -> MemoryBudget:
    """The budget of this process: 256 MiB, or `HOLDFAST_OBJECT_MEMORY_MIB`."""
    return _process.budget
