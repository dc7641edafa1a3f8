"""Keeps asynchronous reports from running ahead of storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.controller.meetings import ranks_text

if TYPE_CHECKING:
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor, Timer
    from holdfast.controller.rounds import Rounds
    from holdfast.worker import protocol

# When a person is told that a report waits for storage, and how often.
_FIRST_NOTICE_S = 1.0
_NOTICE_EVERY_S = 30.0


class Room:
    """The ranks that wait in `report` because enough checkpoints are on their way.

    Args:
        enter: Takes the call of a rank that has waited.
    """

    def __init__(
        self,
        reactor: Reactor,
        observer: RunObserver,
        rounds: Rounds,
        enter: Callable[[int, protocol.ReportCall], None],
    ) -> None:
        self._reactor = reactor
        self._observer = observer
        self._rounds = rounds
        self._enter = enter
        self._waiting: dict[int, protocol.ReportCall] = {}
        self._timer: Timer | None = None

    def admits(self, rank: int, call: protocol.ReportCall, ordinal: int) -> bool:
        """Whether the call may go on; else it is kept until there is room.

        Args:
            ordinal: Of the meeting that the call belongs to.
        """
        if self._rounds.has_room(ordinal, sum(file.size_bytes for file in call.shard.files) if call.shard else 0):
            return True
        self._waiting[rank] = call
        if self._timer is None:
            self._timer = self._reactor.after(_FIRST_NOTICE_S, self._tell)
        return False

    def reopen(self) -> None:
        """Something was settled: all that wait ask again."""
        waiting, self._waiting = self._waiting, {}
        for rank, call in waiting.items():
            self._enter(rank, call)

    @property
    def is_crowded(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def let_go(self, rank: int) -> protocol.ReportCall | None:
        """The call of a rank that has not waited for its turn to come: an interrupt has ended it, and another call follows."""
        return self._waiting.pop(rank, None)

    def forget(self, rank: int) -> None:
        """The rank is gone."""
        self._waiting.pop(rank, None)

    def close(self) -> None:
        """Tells nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        verb = "waits" if len(self._waiting) == 1 else "wait"
        self._observer.message(
            f"{ranks_text(self._waiting)} {verb} in report until there is room: {len(self._rounds)} checkpoints "
            f"({self._rounds.num_bytes / 1e9:.3g} GB) are being stored; RunConfig.max_pending_checkpoints and "
            "max_pending_bytes say how many may be"
        )
        self._timer = self._reactor.after(_NOTICE_EVERY_S, self._tell)
