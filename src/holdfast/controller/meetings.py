"""The calls that all ranks make together, and what it means when one does not come.

Ranks agree by counting: the n-th joint call of every rank is one meeting. Pure bookkeeping, no I/O.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from holdfast.worker import protocol

_NAMES: dict[type[protocol.Message], str] = {
    protocol.ReportCall: "report",
    protocol.BarrierCall: "collective.barrier",
    protocol.BroadcastCall: "collective.broadcast_from_rank_zero",
    protocol.PreemptionCall: "get_preemption_info",
}


def call_name(question: protocol.Message) -> str:
    """How a user calls the function that asks so."""
    return _NAMES[type(question)]


def ranks_text(ranks: Iterable[int]) -> str:
    """`rank 1` or `ranks 0, 2 and 3`."""
    names = [str(rank) for rank in sorted(ranks)]
    if len(names) == 1:
        return f"rank {names[0]}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"


@dataclass
class Meeting:
    """One joint call.

    Attributes:
        ordinal: Which joint call of each rank this is, from 1.
        kind: The type of the first question; the others must be alike.
        calls: What each rank that has come asked.
        refusal: Why it can never succeed; every rank gets it when it comes.
        since: When the first rank came, by the monotonic clock.
        answered: The ranks that have their answer.
        promised: Those of them that had it before the checkpoint was committed; they are still to be told of its end.
        latest: The checkpoint that every rank takes for the latest after this call, where that is news.
        logged: Whether it is in the metrics log.
        failure_noted: It has returned on some ranks, and that it failed is told, or will be.
        told_failure: And it is only to be warned of.
    """

    ordinal: int
    kind: type[protocol.Message]
    world_size: int
    calls: dict[int, protocol.Call] = field(default_factory=dict)
    refusal: protocol.Refused | None = None
    since: float = field(default_factory=time.monotonic)
    answered: set[int] = field(default_factory=set)
    promised: set[int] = field(default_factory=set)
    latest: str | None = None
    logged: bool = False
    failure_noted: bool = False
    told_failure: bool = False

    @property
    def complete(self) -> bool:
        """Whether every rank has come."""
        return len(self.calls) == self.world_size

    def report(self, rank: int) -> protocol.ReportCall:
        """The rank's call of a joint `report`."""
        call = self.calls[rank]
        assert isinstance(call, protocol.ReportCall)
        return call

    @property
    def unanswered(self) -> list[int]:
        """The ranks that wait here."""
        return [rank for rank in self.calls if rank not in self.answered]

    @property
    def missing(self) -> list[int]:
        """The ranks that have not come."""
        return [rank for rank in range(self.world_size) if rank not in self.calls]


class Meetings:
    """All open meetings of one attempt, and how often each rank has called what."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._came = [0] * world_size
        self._reports = [0] * world_size
        self._returned: set[int] = set()
        self._admitted: set[int] = set()
        self.open: dict[int, Meeting] = {}

    def next_of(self, rank: int) -> int:
        """The ordinal of the rank's next joint call."""
        return self._came[rank] + 1

    def expects_report(self, rank: int) -> bool:
        """Whether nothing is known that the rank's next joint call would be refused for, if it is a report."""
        meeting = self.open.get(self.next_of(rank))
        if meeting is None:
            return not self._returned
        return meeting.refusal is None and meeting.kind is protocol.ReportCall

    def admit(self, ordinal: int) -> None:
        """A rank's report of that ordinal may return before it is heard of."""
        self._admitted.add(ordinal)

    def has_admitted(self, ordinal: int) -> bool:
        """Whether a report of that ordinal may have returned on some rank."""
        return ordinal in self._admitted

    def arrive(self, rank: int, question: protocol.Call) -> Meeting:
        """Notes a rank's next joint call and returns its meeting, which may be complete now, or refused."""
        kind = type(question)
        ordinal = self._came[rank] = self._came[rank] + 1
        if kind is protocol.ReportCall:
            self._reports[rank] += 1
        meeting = self.open.get(ordinal)
        if meeting is None:
            meeting = self.open[ordinal] = Meeting(ordinal, kind, self._world_size)
            gone = {r for r in self._returned if self._came[r] < ordinal}
            if gone:
                meeting.calls[rank] = question
                meeting.refusal = self._returned_refusal(meeting, gone)
        meeting.calls[rank] = question
        if meeting.refusal is None and kind is not meeting.kind:
            meeting.refusal = self._mismatch(meeting)
        return meeting

    def close(self, meeting: Meeting) -> None:
        """Every rank has its answer."""
        self.open.pop(meeting.ordinal, None)
        self._admitted.discard(meeting.ordinal)

    def leave(self, rank: int) -> list[Meeting]:
        """A rank's function has returned; gives the meetings that can now never be complete."""
        self._returned.add(rank)
        ended = [meeting for meeting in self.open.values() if rank not in meeting.calls and meeting.refusal is None]
        for meeting in ended:
            meeting.refusal = self._returned_refusal(meeting, {rank})
        return ended

    def oldest(self, *, with_returned: bool = False) -> Meeting | None:
        """The meeting that ranks have waited in for longest, among those that still wait for a rank.

        Args:
            with_returned: Also reports that have returned on every rank that has come.
        """
        waiting = [
            meeting
            for meeting in self.open.values()
            if not meeting.complete
            and meeting.refusal is None
            and (meeting.unanswered or (with_returned and meeting.promised))
        ]
        return min(waiting, key=lambda m: m.since, default=None)

    def describe(self, meeting: Meeting) -> str:
        """Who waits where for whom, for a warning."""
        came = "; ".join(f"rank {rank} has called report {self._reports[rank]} times" for rank in meeting.missing)
        name = call_name(next(iter(meeting.calls.values())))
        if not meeting.unanswered:
            return f"{ranks_text(meeting.promised)} went on after {name}, which cannot be completed without {ranks_text(meeting.missing)} ({came})"
        verb = "waits" if len(meeting.unanswered) == 1 else "wait"
        return f"{ranks_text(meeting.unanswered)} {verb} in {name} for {ranks_text(meeting.missing)} ({came})"

    def _returned_refusal(self, meeting: Meeting, gone: set[int]) -> protocol.Refused:
        name = call_name(next(iter(meeting.calls.values())))
        counts = ", ".join(f"rank {rank} returned after {self._reports[rank]}" for rank in sorted(gone))
        waiting = ", ".join(f"rank {rank} made {self._reports[rank]}" for rank in sorted(meeting.calls))
        return protocol.Refused(
            "uneven-calls",
            f"{ranks_text(meeting.calls)} called {name}, which waits for all {self._world_size} ranks, but {ranks_text(gone)} "
            f"returned and will never call it. Calls of report: {counts}; {waiting}. "
            "Every rank must call report (and the collectives) equally often, with checkpoint=None where it has none",
        )

    def _mismatch(self, meeting: Meeting) -> protocol.Refused:
        calls = ", ".join(f"rank {rank} called {call_name(q)}" for rank, q in sorted(meeting.calls.items()))
        return protocol.Refused(
            "uneven-calls",
            f"ranks make different calls where all must make the same one: {calls}. "
            "Every rank must call report and the collectives in the same order",
        )
