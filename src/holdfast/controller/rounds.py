"""The checkpoints of one attempt that are on their way, in the order of their reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.controller.meetings import ranks_text
from holdfast.controller.round import CheckpointRound
from holdfast.errors import ReportError
from holdfast.persistence import layout
from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.meetings import Meeting
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint

Ended = Callable[["Meeting", "CommittedCheckpoint | None", "BaseException | None"], None]


@dataclass(frozen=True)
class Bounds:
    """How much may be on its way while training goes on; see `RunConfig`."""

    max_pending_checkpoints: int
    max_pending_bytes: int | None


class Rounds:
    """Stores several checkpoints at once and commits them one after another.

    Args:
        ended: Told once of each, with the checkpoint or an error.
        files_closed: Told how many descriptors of files that workers handed over are closed.
    """

    def __init__(
        self,
        reactor: Reactor,
        writer: RunWriter,
        observer: RunObserver,
        attempt: int,
        bounds: Bounds,
        *,
        ended: Ended,
        files_closed: Callable[[int], None],
    ) -> None:
        self._reactor = reactor
        self._writer = writer
        self._observer = observer
        self._attempt = attempt
        self._bounds = bounds
        self._ended = ended
        self._files_closed = files_closed
        self._open: dict[int, tuple[Meeting, CheckpointRound]] = {}
        # Of each rank the last report that had not come when it was told that its files never will.
        self._abandoned: dict[int, protocol.Abandoned] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_bytes(self) -> int:
        """The size of all that are on their way."""
        return sum(round_.num_bytes for _, round_ in self._open.values())

    def has_room(self, ordinal: int, num_bytes: int | None) -> bool:
        """Whether another shard may begin.

        Only earlier reports count. So the earliest may always go on, which those that wait for it depend on.

        Args:
            ordinal: Of the meeting that the shard belongs to.
            num_bytes: Its size; None where it is not known yet, and may be any.
        """
        earlier = [round_ for each, (_, round_) in self._open.items() if each < ordinal]
        if len(earlier) > self._bounds.max_pending_checkpoints:
            return False
        limit = self._bounds.max_pending_bytes
        if limit is None or not earlier:
            return True
        return num_bytes is not None and sum(round_.num_bytes for round_ in earlier) + num_bytes <= limit

    def may_begin(self, ordinal: int, report: int) -> bool:
        """Whether a shard of any size may begin, under the name that its report gives it."""
        if not self.has_room(ordinal, None):
            return False
        found, name = self._open.get(ordinal), layout.checkpoint_name(report)
        return found[1].name == name if found is not None else self._writer.is_free(name)

    def add(self, meeting: Meeting, rank: int, call: protocol.ReportCall) -> None:
        """Begins to store a rank's shard."""
        found = self._open.get(meeting.ordinal)
        if found is None:
            ordinal = meeting.ordinal
            round_ = CheckpointRound(
                self._reactor,
                self._writer,
                self._observer,
                self._attempt,
                call.index,
                lambda checkpoint, error: self._end(meeting, checkpoint, error),
                may_commit=lambda: ordinal == min(self._open),
                files_closed=self._files_closed,
            )
            found = self._open[ordinal] = (meeting, round_)
        found[1].add(rank, call)
        early = self._abandoned.pop(rank, None)
        if early is not None and early.index == call.index:  # else it was refused: a rank makes one after another
            found[1].take(rank, early, [])

    def name_of(self, meeting: Meeting) -> str | None:
        """What the meeting's checkpoint will be called; None where it has none."""
        found = self._open.get(meeting.ordinal)
        return found[1].name if found is not None else None

    def seal(self, meeting: Meeting, metrics: bytes, world_size: int) -> bool:
        """Every rank has come to the meeting; False where none brought a shard."""
        found = self._open.get(meeting.ordinal)
        if found is not None:
            if (error := _missing_part(meeting)) is not None:
                found[1].cancel(error)
            else:
                found[1].seal(metrics, world_size, validates=wish_of(meeting) is not None)
        return found is not None

    def take(self, rank: int, message: protocol.Files | protocol.Abandoned, descriptors: list[int]) -> None:
        """Files of a shard that a rank handed over open."""
        for meeting, round_ in list(self._open.values()):
            # By the rank's own count: where it made a report while others made another call, it differs from theirs.
            call = meeting.calls.get(rank)
            if message.index == -1 or (isinstance(call, protocol.ReportCall) and message.index == call.index):
                round_.take(rank, message, descriptors)
                if message.index >= 0:
                    return
        if isinstance(message, protocol.Abandoned) and message.index >= 0:
            self._abandoned[rank] = message
        for descriptor in descriptors:  # of a checkpoint that was given up
            os.close(descriptor)
        if descriptors:
            self._files_closed(len(descriptors))

    def cancel(self, meeting: Meeting, error: BaseException) -> bool:
        """Gives the meeting's checkpoint up; False where it has none. Its end is told as any other."""
        found = self._open.get(meeting.ordinal)
        if found is not None:
            found[1].cancel(error)
        return found is not None

    def storing(self) -> list[tuple[Meeting, str]]:
        """The meetings whose checkpoints are not being committed yet, with their names."""
        return [(meeting, round_.name) for meeting, round_ in self._open.values() if not round_.committing]

    def settled_before(self, report: int) -> bool:
        """Whether no checkpoint of an earlier report is on its way."""
        return all(round_.report >= report for _, round_ in self._open.values())

    def anyone_waits(self) -> bool:
        """Whether a rank waits for nothing but storage."""
        return any(round_.sealed and meeting.unanswered for meeting, round_ in self._open.values())

    def _end(self, meeting: Meeting, checkpoint: CommittedCheckpoint | None, error: BaseException | None) -> None:
        del self._open[meeting.ordinal]
        self._ended(meeting, checkpoint, error)
        for _, round_ in sorted(self._open.items()):
            round_[1].advance()


def wish_of(meeting: Meeting) -> protocol.ValidationTask | None:
    """How the meeting's checkpoint is to be validated, as the lowest rank that wants it says."""
    calls = (call for _, call in sorted(meeting.calls.items()) if isinstance(call, protocol.ReportCall))
    return next((call.validation for call in calls if call.validation is not None), None)


def idle_wish(meeting: Meeting) -> ReportError | None:
    """What is wrong where a validation is asked for and no rank has brought a checkpoint."""
    calls = {rank: call for rank, call in meeting.calls.items() if isinstance(call, protocol.ReportCall)}
    asking = [rank for rank, call in calls.items() if call.validation is not None]
    if not asking or any(call.shard is not None for call in calls.values()):
        return None
    return ReportError(
        f"{ranks_text(asking)} asked for a validation of report {calls[0].index}, but no rank reported a checkpoint with it: there is "
        "nothing to validate. Report one, or leave validation= out"
    )


def _missing_part(meeting: Meeting) -> ReportError | None:
    """What is wrong where some ranks bring their part of a state and others keep theirs: nobody could load it."""
    calls = {rank: call for rank, call in meeting.calls.items() if isinstance(call, protocol.ReportCall)}
    keeping = [rank for rank, call in calls.items() if call.brings_state is False]
    if not keeping or not any(call.brings_state for call in calls.values()):
        return None
    return ReportError(
        f"{ranks_text(keeping)} saved a part of the state and did not report it, so the checkpoint could not be loaded; "
        "report the directory that save_state wrote to on every rank"
    )
