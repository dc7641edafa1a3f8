"""What the workers of one attempt are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.group import WorkerGroup
    from holdfast.controller.meetings import Meeting


class Answers:
    """Answers to calls, and what became of reports that have returned; nothing while there is no group."""

    def __init__(self) -> None:
        self._group: WorkerGroup | None = None

    def begin(self, group: WorkerGroup) -> None:
        """The workers run."""
        self._group = group

    def send(self, rank: int, call: protocol.Call, message: protocol.Message) -> None:
        """Answers one call."""
        if self._group is not None:
            self._group.send(rank, protocol.answer(call.number, protocol.body(message)))

    def answer(self, meeting: Meeting, ranks: Iterable[int], body: bytes) -> None:
        """Answers these ranks' calls of a meeting alike."""
        waiting = list(ranks)
        meeting.answered.update(waiting)
        if self._group is not None:
            for rank in waiting:
                self._group.send(rank, protocol.answer(meeting.calls[rank].number, body))

    def promise(self, meeting: Meeting, rank: int) -> None:
        """The report returns on that rank, if it has not: what becomes of its checkpoint will be told."""
        meeting.promised.add(rank)
        self.answer(meeting, [rank], protocol.body(protocol.Proceed(latest=meeting.latest)))

    def settle(self, meeting: Meeting, name: str | None, kind: str = "", text: str = "") -> list[int]:
        """Tells the ranks on which the report has returned what became of its checkpoint: its name, or why there is none.

        Returns:
            Those ranks.
        """
        told, meeting.promised = sorted(meeting.promised), set()
        if self._group is not None:
            for rank in told:
                settled = protocol.Settled(meeting.report(rank).index, name, kind, text)
                self._group.tell(rank, protocol.frame(settled))
        return told

    def files_closed(self, count: int) -> None:
        """So many of the files that workers handed over are closed."""
        if self._group is not None:
            self._group.files_closed(count)

    def dump_stacks(self, ranks: Sequence[int]) -> None:
        """Has these ranks write where they are."""
        if self._group is not None:
            self._group.dump_stacks(ranks)
