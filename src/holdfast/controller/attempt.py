"""One life of a worker group: answers its calls, sees its ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.controller.failure import from_exit, from_failed
from holdfast.controller.group import Exit, Listener, WorkerGroup
from holdfast.controller.meetings import Meeting, Meetings, ranks_text
from holdfast.controller.round import CheckpointRound
from holdfast.errors import HoldfastError, StorageError
from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor, Timer
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint

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

_PROCEED = protocol.frame(protocol.Proceed())


@dataclass(frozen=True)
class Limits:
    """Seconds that an attempt waits for ranks; see `RunConfig`."""

    late_rank_warning_s: float
    late_rank_timeout_s: float | None
    stop_grace_s: float


@dataclass
class AttemptState:
    """What became of an attempt.

    Attributes:
        failures: The ranks that failed of themselves.
        aftermath: The ranks that failed because others had, or because the run was being stopped.
        values: cloudpickle of the returned values by rank.
        interrupted: Ctrl-C ended the function in the user's own program.
    """

    failures: dict[int, BaseException] = field(default_factory=dict)
    aftermath: dict[int, BaseException] = field(default_factory=dict)
    values: dict[int, bytes | None] = field(default_factory=dict)
    interrupted: bool = False


class Attempt:
    """Runs from the start of a group to the end of its last process and its last commit."""

    def __init__(
        self,
        number: int,
        world_size: int,
        first_report: int,
        *,
        reactor: Reactor,
        writer: RunWriter,
        observer: RunObserver,
        limits: Limits,
        after_report: Callable[[int, list[bytes], CommittedCheckpoint | None, float], None],
    ) -> None:
        self.number = number
        self.world_size = world_size
        self.state = AttemptState()
        self.listener = Listener(self._on_message, self._on_exit)
        self._first_report = self._next_report = first_report
        self._reactor = reactor
        self._writer = writer
        self._observer = observer
        self._limits = limits
        self._after_report = after_report
        self._group: WorkerGroup | None = None
        self._meetings = Meetings(world_size)
        self._rounds: dict[int, CheckpointRound] = {}
        self._alive = set(range(world_size))
        self._told: set[int] = set()  # have been refused a call because the attempt ends, and unwind
        self._ending: protocol.Refused | None = None
        self._stopping = False
        self._timers: dict[str, Timer] = {}

    # Life

    def begin(self, group: WorkerGroup) -> None:
        """The group runs; its messages are answered from now on."""
        self._group = group
        if self._ending is not None:  # a worker died while its siblings were being started
            self._refuse_open(self._ending)

    @property
    def over(self) -> bool:
        """Whether no process is left and nothing is being stored."""
        return not self._alive and not self._rounds

    @property
    def next_report(self) -> int:
        """The lowest index that no report has used."""
        return self._next_report

    def stop(self, refusal: protocol.Refused) -> None:
        """Asks workers to stop; whoever waits in a report that only storage holds up gets its answer first."""
        self._stopping = True
        self._ending = self._ending or refusal
        self._refuse_open(self._ending)
        self._interrupt_soon()
        self._set_timer("stop", self._limits.stop_grace_s, self.kill)

    def kill(self) -> None:
        """Ends every process at once; what is complete is still committed."""
        if self._group is not None and self._alive:
            self._group.kill()
            self._set_timer("killed", _KILLED_S, self._survived)

    def close(self) -> None:
        """Frees the group."""
        for timer in self._timers.values():
            timer.cancel()
        if self._group is not None:
            self._group.close()

    # Events

    def _on_message(self, rank: int, question: protocol.Question) -> None:
        if type(question) is protocol.ReportCall:
            self._on_report(rank, question)
        elif isinstance(question, protocol.Finished):
            self._on_finished(rank, question)
        elif isinstance(question, protocol.Failed):
            self._on_failed(rank, question)
        elif isinstance(question, protocol.CheckpointsCall):
            self._send(rank, self._committed())
        else:
            self._on_collective(rank, question)

    def _on_report(self, rank: int, call: protocol.ReportCall) -> None:
        meeting = self._arrive(rank, call)
        if meeting is None:
            return
        if call.shard is not None:
            self._round(meeting, call.index).add(rank, call)
        if not meeting.complete:
            self._watch_for_late_ranks()
            return
        self._next_report = max(self._next_report, call.index + 1)
        round_ = self._rounds.get(meeting.ordinal)
        if round_ is None:
            self._conclude(meeting, None)
        else:
            first = meeting.calls[0]
            assert isinstance(first, protocol.ReportCall)
            round_.seal(first.metrics, self.world_size)

    def _round(self, meeting: Meeting, report: int) -> CheckpointRound:
        round_ = self._rounds.get(meeting.ordinal)
        if round_ is None:

            def ending(checkpoint: CommittedCheckpoint | None, error: BaseException | None) -> None:
                self._rounds.pop(meeting.ordinal, None)
                if error is not None:
                    self._refuse(meeting, meeting.refusal or _refusal(error))
                else:
                    self._conclude(meeting, checkpoint)
                if self._stopping:
                    self._interrupt_soon()

            round_ = CheckpointRound(self._reactor, self._writer, self._observer, self.number, report, ending)
            self._rounds[meeting.ordinal] = round_
        return round_

    def _conclude(self, meeting: Meeting, checkpoint: CommittedCheckpoint | None) -> None:
        """Logs a complete report and lets every rank go on.

        The log's line comes after the commit: should the driver die between the two, the checkpoint is there with its
        metrics in its manifest, and `report` has not returned anywhere.
        """
        metrics = [call.metrics for _, call in sorted(meeting.calls.items()) if isinstance(call, protocol.ReportCall)]
        first = meeting.calls[0]
        assert isinstance(first, protocol.ReportCall)
        others = metrics[1:] if any(other != metrics[0] for other in metrics) else None
        name = checkpoint.name if checkpoint is not None else None
        try:
            self._writer.log_report(report=first.index, checkpoint=name, metrics=metrics[0], other_ranks=others)
        except StorageError as error:
            self._refuse(meeting, _refusal(error))
            return
        self._meetings.close(meeting)
        frame = _PROCEED if name is None else protocol.frame(protocol.Proceed(name))
        for rank in range(self.world_size):
            self._send_frame(rank, frame)
        self._after_report(first.index, metrics, checkpoint, time.monotonic() - meeting.since)

    def _on_collective(self, rank: int, question: protocol.Question) -> None:
        meeting = self._arrive(rank, question)
        if meeting is None:
            return
        if not meeting.complete:
            self._watch_for_late_ranks()
            return
        first = meeting.calls[0]
        answer: protocol.Message = protocol.Proceed()
        if isinstance(first, protocol.BroadcastCall):
            answer = protocol.Delivered(first.data or b"")
        elif isinstance(first, protocol.PreemptionCall):
            answer = protocol.PreemptionState(None, {})
        self._meetings.close(meeting)
        for each in range(self.world_size):
            self._send(each, answer)

    def _arrive(self, rank: int, question: protocol.Question) -> Meeting | None:
        """The meeting that the call belongs to, or None if the call has been refused."""
        meeting = self._meetings.arrive(rank, question)
        if self._ending is not None:
            meeting.refusal = meeting.refusal or self._ending
        if meeting.refusal is not None:
            self._refuse(meeting, meeting.refusal)
            return None
        return meeting

    def _on_finished(self, rank: int, finished: protocol.Finished) -> None:
        self.state.values[rank] = finished.value
        for meeting in self._meetings.leave(rank):
            assert meeting.refusal is not None
            self._refuse(meeting, meeting.refusal)
        self._set_timer(f"exit {rank}", _EXIT_S, lambda: self._lingers(rank))

    def _on_failed(self, rank: int, failed: protocol.Failed) -> None:
        self.state.interrupted |= failed.interrupted
        self._fail(rank, from_failed(rank, failed))

    def _on_exit(self, rank: int, ended: Exit) -> None:
        self._alive.discard(rank)
        timer = self._timers.pop(f"exit {rank}", None)
        if timer is not None:
            timer.cancel()
        if rank not in self.state.values and rank not in self.state.failures and rank not in self.state.aftermath:
            self._fail(rank, from_exit(rank, ended))

    def _fail(self, rank: int, error: BaseException) -> None:
        # What we did to a rank because another had failed (a refused call, an interrupt) is no failure of its own.
        if self._ending is not None and (
            self._stopping or isinstance(error, KeyboardInterrupt) or self._ending.text in str(error)
        ):
            self.state.aftermath[rank] = error
        else:
            self.state.failures[rank] = error
        if self._ending is None:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._ending = protocol.Refused("worker-died", f"rank {rank} has failed, this attempt ends: {first}")
            self._set_timer("last words", _LAST_WORDS_S, self._end_survivors)
        self._refuse_open(self._ending)

    def _end_survivors(self) -> None:
        if self._has_sealed_round():  # its ranks wait for storage only; their files must stay until it is done
            self._set_timer("last words", _LAST_WORDS_S, self._end_survivors)
            return
        self._interrupt()
        self._set_timer("last words", _UNWIND_S, self.kill)

    # Refusals

    def _refuse_open(self, refusal: protocol.Refused) -> None:
        """Ends the wait of all that wait for a rank; a meeting that is complete goes on to its commit."""
        for meeting in list(self._meetings.open.values()):
            if not meeting.complete:
                self._refuse(meeting, refusal)

    def _refuse(self, meeting: Meeting, refusal: protocol.Refused) -> None:
        meeting.refusal = refusal
        round_ = self._rounds.get(meeting.ordinal)
        if round_ is not None:
            # First remove what was stored: a caller that is told may delete its files, or report the name again.
            round_.cancel(HoldfastError(refusal.text))
            return
        frame = protocol.frame(refusal)
        for rank in meeting.calls:
            if rank not in meeting.answered:
                meeting.answered.add(rank)
                if self._ending is not None:
                    self._told.add(rank)
                self._send_frame(rank, frame)
        if meeting.complete:
            self._meetings.close(meeting)

    # Waiting

    def _watch_for_late_ranks(self) -> None:
        if "late" not in self._timers:
            self._set_timer("late", self._limits.late_rank_warning_s, self._check_late)

    def _check_late(self) -> None:
        """Runs rarely, not once a report: a timer a report would fill the heap."""
        self._timers.pop("late", None)
        meeting = self._meetings.oldest()
        if meeting is None:
            return
        waited = time.monotonic() - meeting.since
        limit = self._limits.late_rank_timeout_s
        if limit is not None and waited >= limit:
            text = f"{self._meetings.describe(meeting)}: given up after {waited:.0f} s (RunConfig.late_rank_timeout_s)"
            self._refuse(meeting, protocol.Refused("timeout", text))
            return
        due = self._limits.late_rank_warning_s
        if waited >= due * 0.99:
            self._observer.message(
                f"{self._meetings.describe(meeting)} since {waited:.0f} s; stacks of {ranks_text(meeting.missing)} follow in "
                "their output"
            )
            if self._group is not None:
                self._group.dump_stacks(meeting.missing)
            delay = waited  # warns after 30, 60, 120 … s
        else:
            delay = due - waited
        if limit is not None:
            delay = min(delay, max(0.0, limit - waited))
        self._set_timer("late", max(delay, 0.001), self._check_late)

    def _lingers(self, rank: int) -> None:
        self._observer.message(
            f"rank {rank} has returned, but its process does not end (a thread? an exit handler?): killed"
        )
        self.kill()

    def _survived(self) -> None:
        self._observer.message(
            f"{ranks_text(self._alive)} still there {_KILLED_S:.0f} s after SIGKILL; going on without"
        )
        self._alive.clear()

    def _has_sealed_round(self) -> bool:
        return any(round_.sealed for round_ in self._rounds.values())

    def _interrupt_soon(self) -> None:
        delay_s = min(_NEXT_CALL_S, self._limits.stop_grace_s / 2)
        self._set_timer("interrupt", delay_s, self._interrupt_unless_sealed)

    def _interrupt_unless_sealed(self) -> None:
        if not self._has_sealed_round():  # its end comes back here
            self._interrupt()

    def _interrupt(self) -> None:
        """Interrupts whoever has not been told yet: a second blow would hit the clean-up after the first."""
        if self._group is not None:
            self._group.interrupt(self._alive - self._told)

    def _set_timer(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        old = self._timers.get(name)
        if old is not None:
            old.cancel()
        self._timers[name] = self._reactor.after(delay_s, callback)

    # Answers

    def _committed(self) -> protocol.ReportedList:
        return protocol.ReportedList(
            [protocol.ReportedEntry(c.name, bytes(c.metrics)) for c in self._writer.checkpoints()]
        )

    def _send(self, rank: int, message: protocol.Message) -> None:
        self._send_frame(rank, protocol.frame(message))

    def _send_frame(self, rank: int, frame: bytes) -> None:
        if self._group is not None:
            self._group.send(rank, frame)


def _refusal(error: BaseException) -> protocol.Refused:
    kind = error.kind if isinstance(error, HoldfastError) else "storage"
    text = str(error) if isinstance(error, HoldfastError) else f"{type(error).__name__}: {error}"
    return protocol.Refused(kind, text)
