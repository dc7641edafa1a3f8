"""A file system object of fsspec, and calls to it: each with a limit of time, and one at a time where its client bears no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
_LOOK_S = 1.0
_NEVER_S = float("inf")


class NoAnswerError(Exception):
    """A call did not come back in time; it may do so yet."""


class CallFailedError(Exception):
    """A call came back with an error, which it holds: what is raised where one waits for it, an interrupt, is another matter."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Session:
    """What one object reaches, until its connection breaks. Safe for threads.

    Args:
        filesystem: The object.
        concurrent: Whether several threads may use it at once.

    Attributes:
        is_lost: Nothing more is to be asked of it.
    """

    def __init__(self, filesystem: Any, *, concurrent: bool) -> None:
        self.filesystem = filesystem
        self.is_lost = False
        self._turn = None if concurrent else threading.Lock()
        # When the call whose turn it is will be given up.
        self._until_s = _NEVER_S

    @property
    def hangs(self) -> bool:
        """Whether a call that was given up has not come back."""
        return time.monotonic() > self._until_s

    def run(self, function: Callable[[Any], T], limit_s: float) -> T:
        """Calls the file system. The limit counts from its turn: a healthy one that has many calls before it is no failure.

        Raises:
            NoAnswerError: It did not come back.
            CallFailedError: It failed; with a `ConnectionError` where another call broke the connection.
        """
        return limited(lambda begins: self._run(function, limit_s, begins), limit_s, waits=self._turn is not None)

    def _run(self, function: Callable[[Any], T], limit_s: float, begins: Callable[[], None]) -> T:
        if self._turn is None:
            return function(self.filesystem)
        while not self._turn.acquire(timeout=_LOOK_S):
            if self.is_lost or time.monotonic() > self._until_s:
                raise ConnectionError("another call has not come back")
        try:
            # Behind a call that was given up and came back after all, its answers could be taken for ours.
            if self.is_lost:
                raise ConnectionError("the connection was given up")
            self._until_s = time.monotonic() + limit_s
            begins()
            return function(self.filesystem)
        finally:
            self._until_s = _NEVER_S
            self._turn.release()


def limited(work: Callable[[Callable[[], None]], T], limit_s: float, *, waits: bool = False) -> T:
    """What `work` gives; it runs in a thread that nobody joins, so that one that hangs holds up no end of the program.

    Args:
        work: Takes what it calls when its time begins.
        waits: Its time begins with that call, or with its end; else at once.

    Raises:
        NoAnswerError: It took longer.
        CallFailedError: It failed.
    """
    task = _Task(work)
    if not task.run(limit_s, waits=waits):
        raise NoAnswerError
    if task.error is not None:
        raise CallFailedError(task.error)
    return cast("T", task.value)


class _Task(Generic[T]):
    def __init__(self, work: Callable[[Callable[[], None]], T]) -> None:
        self._work = work
        self._begun = threading.Event()
        self._done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self, limit_s: float, *, waits: bool) -> bool:
        """Whether it ended in time."""
        threading.Thread(target=self._run, name="holdfast-fsspec", daemon=True).start()
        if waits:
            self._begun.wait()
        return self._done.wait(limit_s)

    def _run(self) -> None:
        try:
            self.value = self._work(self._begun.set)
        except BaseException as error:  # noqa: BLE001 - it is raised where the work was asked for
            self.error = error
        finally:
            self._done.set()
            self._begun.set()
