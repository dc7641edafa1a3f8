"""The memory that this process gives to what is on its way to and from object stores."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_DEFAULT_MIB = 256


class MemoryBudget:
    """A number of bytes that transfers share; who finds too little left waits, or does with less.

    Args:
        limit_bytes: The most that is out at once. A single transfer that needs more gets all of it, alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._freed = threading.Condition()

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
            # Whoever holds some is moving data under the time limits of its client, so this ends.
            while self._used_bytes + num_bytes > self.limit_bytes:
                self._freed.wait()
            self._used_bytes += num_bytes

    def try_take(self, num_bytes: int) -> bool:
        """Takes bytes if they are there now; `give_back` returns them."""
        with self._freed:
            if self._used_bytes + num_bytes > self.limit_bytes:
                return False
            self._used_bytes += num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """Returns what was taken."""
        with self._freed:
            self._used_bytes -= num_bytes
            self._freed.notify_all()


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
