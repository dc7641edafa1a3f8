"""Ends the processes of an attempt: gently where they may unwind, at last by force."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.controller.meetings import ranks_text

if TYPE_CHECKING:
    from holdfast.controller.group import WorkerGroup
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor, Timer

# How long after a first failure the other ranks' own errors are waited for: they follow within milliseconds (a
# broken connection). Then whoever still runs is interrupted, so that its temporary files go, and soon killed: a
# rank that is stuck would hold up the restart.
_LAST_WORDS_S = 0.05
_UNWIND_S = 0.1
# A run that is stopped ends each rank at its next call, a place of the user's own choosing where no temporary
# directory is half made or half removed. Who makes no call in this time is interrupted wherever it is.
_NEXT_CALL_S = 0.5
# How long a worker may take to go after it has said its last word (exit handlers, threads of the user).
_EXIT_S = 30.0
# Even a killed worker can be held by the kernel (a file system that hangs).
_KILLED_S = 60.0


class Dismissal:
    """Interrupts and kills, on timers.

    Args:
        must_wait: Whether ranks are still needed as they are: they wait for storage only, or are about to complete
            what others rely on.

    Attributes:
        alive: The ranks whose processes have not ended.
        told: Those that were refused a call because the attempt ends, and unwind: a second blow would hit the clean-up
            after the first.
        finishing: Those that have said their last word.
        killed: Those that were alive when all were killed.
    """

    def __init__(
        self, reactor: Reactor, observer: RunObserver, world_size: int, *, must_wait: Callable[[], bool]
    ) -> None:
        self.alive = set(range(world_size))
        self.told: set[int] = set()
        self.finishing: set[int] = set()
        self.killed: set[int] = set()
        self._reactor = reactor
        self._observer = observer
        self._must_wait = must_wait
        self._group: WorkerGroup | None = None
        self._timers: dict[str, Timer] = {}
        self._grace_s = 0.0

    def begin(self, group: WorkerGroup) -> None:
        """The processes run."""
        self._group = group

    def after_failure(self) -> None:
        """A rank has failed: the others get a moment for last words, then they are interrupted and killed."""
        self._set_timer("last words", _LAST_WORDS_S, self._end_survivors)

    def after_stop(self, grace_s: float, give_up: Callable[[], None]) -> None:
        """Somebody asked for the end: whoever makes no call is interrupted, and after the grace all is given up."""
        self._grace_s = grace_s
        self.interrupt_soon()
        self._set_timer("stop", grace_s, give_up)

    def interrupt_soon(self) -> None:
        """Interrupts, a little later, whoever has not been told by then."""
        self._set_timer("interrupt", min(_NEXT_CALL_S, self._grace_s / 2), self._interrupt_unless_waiting)

    def kill(self) -> None:
        """Ends every process at once."""
        if self._group is not None and self.alive:
            self.killed |= self.alive
            self._group.kill()
            self._set_timer("killed", _KILLED_S, self._survived)

    def finished(self, rank: int) -> None:
        """The rank has said its last word; its process is to end now."""
        self.finishing.add(rank)
        self._set_timer(f"exit {rank}", _EXIT_S, lambda: self._lingers(rank))

    def ended(self, rank: int) -> None:
        """The rank's process has ended."""
        self.alive.discard(rank)
        timer = self._timers.pop(f"exit {rank}", None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Does nothing more."""
        for timer in self._timers.values():
            timer.cancel()

    def _end_survivors(self) -> None:
        if self._must_wait():
            self.after_failure()
            return
        self._interrupt()
        self._set_timer("last words", _UNWIND_S, self.kill)

    def _interrupt_unless_waiting(self) -> None:
        if self._must_wait():
            self.interrupt_soon()
        else:
            self._interrupt()

    def _interrupt(self) -> None:
        if self._group is not None:
            self._group.interrupt(self.alive - self.told - self.finishing)

    def _lingers(self, rank: int) -> None:
        self._observer.message(
            f"rank {rank} has returned, but its process does not end (a thread? an exit handler?): killed"
        )
        if self._group is not None:
            self._group.kill([rank])

    def _survived(self) -> None:
        self._observer.message(
            f"{ranks_text(self.alive)} still there {_KILLED_S:.0f} s after SIGKILL; going on without"
        )
        self.alive.clear()

    def _set_timer(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        old = self._timers.get(name)
        if old is not None:
            old.cancel()
        self._timers[name] = self._reactor.after(delay_s, callback)
