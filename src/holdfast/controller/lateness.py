"""Names, in time, the ranks that others wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from holdfast.controller.meetings import Meeting, Meetings, ranks_text

if TYPE_CHECKING:
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor, Timer


class LateWatch:
    """Looks at the oldest meeting that waits for a rank; one timer for all, not one a report.

    Args:
        warn_s: From when on a rank is late.
        limit_s: How long others wait for it at most; None for as long as it takes.
        dump_stacks: Has ranks write where they are.
        give_up: Ends the wait in a meeting, with a text that says why.
        is_crowded: Whether ranks wait because too many checkpoints are on their way, which may be for want of a rank.
    """

    def __init__(
        self,
        reactor: Reactor,
        observer: RunObserver,
        meetings: Meetings,
        *,
        warn_s: float,
        limit_s: float | None,
        dump_stacks: Callable[[Sequence[int]], None],
        give_up: Callable[[Meeting, str], None],
        is_crowded: Callable[[], bool],
    ) -> None:
        self._reactor = reactor
        self._observer = observer
        self._meetings = meetings
        self._warn_s = warn_s
        self._limit_s = limit_s
        self._dump_stacks = dump_stacks
        self._give_up = give_up
        self._is_crowded = is_crowded
        self._timer: Timer | None = None

    def begin(self) -> None:
        """A rank waits for others; costs nothing while an earlier watch goes on."""
        if self._timer is None:
            self._timer = self._reactor.after(self._warn_s, self._look)

    def close(self) -> None:
        """Ends the watch."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        meeting = self._meetings.oldest(with_returned=self._is_crowded())
        if meeting is None:
            return
        waited_s = time.monotonic() - meeting.since
        limit_s = self._limit_s
        if limit_s is not None and waited_s >= limit_s:
            described = self._meetings.describe(meeting)
            self._give_up(meeting, f"{described}: given up after {waited_s:.0f} s (RunConfig.late_rank_timeout_s)")
            return
        if waited_s >= self._warn_s * 0.99:
            self._observer.message(
                f"{self._meetings.describe(meeting)} since {waited_s:.0f} s; stacks of {ranks_text(meeting.missing)} follow "
                "in their output"
            )
            self._dump_stacks(meeting.missing)
            delay_s = waited_s  # warns after 30, 60, 120 … s
        else:
            delay_s = self._warn_s - waited_s
        if limit_s is not None:
            delay_s = min(delay_s, max(0.0, limit_s - waited_s))
        self._timer = self._reactor.after(max(delay_s, 0.001), self._look)
