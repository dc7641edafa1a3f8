"""One life of a worker group: answers its calls, sees its ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.controller.answers import Answers
from holdfast.controller.dismissal import Dismissal
from holdfast.controller.ends import Ends
from holdfast.controller.failure import from_exit, from_failed
from holdfast.controller.group import Exit, Listener, WorkerGroup
from holdfast.controller.lateness import LateWatch
from holdfast.controller.listings import Listings
from holdfast.controller.meetings import Meeting, Meetings
from holdfast.controller.report_log import log_once
from holdfast.controller.room import Room
from holdfast.controller.rounds import Rounds, idle_wish, wish_of
from holdfast.controller.upload_failures import UploadFailures
from holdfast.errors import HoldfastError, StorageError
from holdfast.worker import protocol
from holdfast.worker.answers import refusal_of

if TYPE_CHECKING:
    from holdfast.controller.limits import Limits
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor
    from holdfast.controller.validations import Validations
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint

# Where a report has returned on one rank and others are about to make it: a checkpoint is worth this wait.
_PROMISE_S = 1.0

_PROCEED = protocol.body(protocol.Proceed())


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
        validations: Validations | None,
        after_report: Callable[[Meeting, CommittedCheckpoint | None], None],
    ) -> None:
        self.number = number
        self.world_size = world_size
        self.ends = Ends()
        self.listener = Listener(self._on_message, self._on_exit, self._on_files)
        self._next_report = first_report
        self._reactor = reactor
        self._writer = writer
        self._observer = observer
        self._limits = limits
        self._after_report = after_report
        self._group: WorkerGroup | None = None
        self._answers = Answers()
        self._meetings = Meetings(world_size)
        self._rounds = Rounds(
            reactor,
            writer,
            observer,
            number,
            limits.pending,
            ended=self._round_ended,
            files_closed=self._answers.files_closed,
        )
        self._late = LateWatch(
            reactor,
            observer,
            self._meetings,
            warn_s=limits.late_rank_warning_s,
            limit_s=limits.late_rank_timeout_s,
            dump_stacks=self._answers.dump_stacks,
            give_up=lambda meeting, text: self._refuse(meeting, protocol.Refused("timeout", text)),
            is_crowded=lambda: self._room.is_crowded,
        )
        self._validations = validations
        self._listings = Listings(reactor, writer, self._rounds, validations, self._answers.send)
        self._room = Room(reactor, observer, self._rounds, self._on_report)
        self._latest: str | None = None
        self._upload_failures = UploadFailures(observer, raises=limits.raises_upload_errors)
        self._processes = Dismissal(reactor, observer, world_size, must_wait=self._must_wait)

    # Life

    def begin(self, group: WorkerGroup) -> None:
        """The group runs; its messages are answered from now on."""
        self._group = group
        self._answers.begin(group)
        self._processes.begin(group)
        if self.ends.ending is not None:  # a worker died while its siblings were being started
            self._refuse_open(self.ends.ending)

    @property
    def over(self) -> bool:
        """Whether no process is left and nothing is being stored."""
        return not self._processes.alive and not self._rounds

    @property
    def next_report(self) -> int:
        """The lowest index that no report has used."""
        return self._next_report

    def stop(self, refusal: protocol.Refused) -> None:
        """Asks workers to stop; whoever waits in a report that only storage holds up gets its answer first."""
        self.ends.stopping = True
        self.ends.begin_ending(refusal)
        self._refuse_open(self.ends.ending or refusal)
        self._room.reopen()
        self._processes.after_stop(self._limits.stop_grace_s, self.give_up)

    def kill(self) -> None:
        """Ends every process at once; what is complete is still committed."""
        self._processes.kill()

    def validation_settled(self) -> None:
        """A validation has its outcome."""
        self._listings.look()

    def give_up(self) -> None:
        """As `kill`, and waits no longer for what is still being stored; a commit that has begun comes to its end.

        Should the store be silent, that end comes within seconds.
        """
        self.kill()
        self._writer.store.hurry()
        for meeting, name in self._rounds.storing():
            self._observer.message(f"{name} is given up: it was not stored in time")
            self._rounds.cancel(meeting, HoldfastError("the run was stopped before it was stored"))

    def settle(self) -> None:
        """The attempt is over: what has gone wrong and nobody has been told is a failure of it."""
        self._upload_failures.settle(self.ends)

    def close(self) -> None:
        """Frees the group."""
        self._late.close()
        self._room.close()
        self._listings.close()
        self._processes.close()
        if self._group is not None:
            self._group.close()

    # Events

    def _on_message(self, rank: int, question: protocol.Question) -> None:
        interrupted = self._room.let_go(rank)
        if interrupted is not None:
            # It was made before this one, and the ranks agree by counting.
            self._enter(rank, interrupted)
        if type(question) is protocol.ReportCall:
            self._on_report(rank, question)
        elif isinstance(question, protocol.AdmissionCall):
            self._answers.send(rank, question, self._admission(rank, question.index))
        elif isinstance(question, protocol.Finished):
            self._on_finished(rank, question)
        elif isinstance(question, protocol.Failed):
            self._on_failed(rank, question)
        elif isinstance(question, protocol.CheckpointsCall):
            self._listings.ask(rank, question)
        else:
            self._on_collective(rank, question)

    def _admission(self, rank: int, index: int) -> protocol.Admission:
        """Whether the rank's next report may return without its answer: there is room, and nothing to tell."""
        ordinal = self._meetings.next_of(rank)
        admitted = (
            self.ends.ending is None
            and (not self._upload_failures or self._meetings.has_admitted(ordinal))
            and self._meetings.expects_report(rank)
            and self._rounds.may_begin(ordinal, index)
        )
        if admitted:
            self._meetings.admit(ordinal)
        return protocol.Admission(admitted)

    def _on_report(self, rank: int, call: protocol.ReportCall) -> None:
        may_wait = call.hands_over and not call.admitted and self.ends.ending is None
        if may_wait and not self._room.admits(rank, call, self._meetings.next_of(rank)):
            self._late.begin()
            return
        self._enter(rank, call)

    def _enter(self, rank: int, call: protocol.ReportCall) -> None:
        meeting = self._arrive(rank, call)
        if meeting is None:
            return
        if call.admitted:
            self._answers.promise(meeting, rank)
        if call.shard is not None:
            self._rounds.add(meeting, rank, call)
        if not call.waits and rank not in meeting.answered:
            self._answers.promise(meeting, rank)
        if meeting.refusal is not None:
            return
        if not meeting.complete:
            if self.ends.ending is not None and not self._may_complete(meeting):
                self._refuse(meeting, self.ends.ending)
            self._late.begin()
            return
        self._next_report = max(self._next_report, call.index + 1)
        if (error := idle_wish(meeting)) is not None:
            self._refuse(meeting, refusal_of(error))
            return
        # Before it is sealed, which may end it at once.
        name = self._rounds.name_of(meeting)
        if meeting.promised and name is not None and not self._log(meeting, name):
            return
        if not self._rounds.seal(meeting, meeting.report(0).metrics, self.world_size):
            self._conclude(meeting, None)

    def _on_files(self, rank: int, message: protocol.Files | protocol.Abandoned, descriptors: list[int]) -> None:
        self._rounds.take(rank, message, descriptors)

    def _round_ended(
        self, meeting: Meeting, checkpoint: CommittedCheckpoint | None, error: BaseException | None
    ) -> None:
        if error is not None:
            self._refuse(meeting, meeting.refusal or refusal_of(error))
        else:
            self._conclude(meeting, checkpoint)
        if self.ends.stopping:
            self._processes.interrupt_soon()
        self._listings.look()
        self._room.reopen()

    def _conclude(self, meeting: Meeting, checkpoint: CommittedCheckpoint | None) -> None:
        """Logs a complete report and lets every rank go on.

        The log's line comes after the commit: should the driver die between the two, the checkpoint is there with its
        metrics in its manifest, and `report` has not returned anywhere. Where it has, the line was written before.
        """
        name = checkpoint.name if checkpoint is not None else None
        if not self._log(meeting, name, is_committed=checkpoint is not None):
            return
        self._meetings.close(meeting)
        if name is None and meeting.latest is None:
            body = _PROCEED
        else:
            body = protocol.body(protocol.Proceed(name, name or meeting.latest))
        self._answers.answer(meeting, meeting.unanswered, body)
        told = self._answers.settle(meeting, name)
        if name is not None:
            # Where nobody went on before, the answer has told everybody, and there is no news.
            self._latest = name if told else None
        if checkpoint is not None and self._validations is not None:
            task = wish_of(meeting)
            if task is not None:
                self._validations.add(checkpoint, task)
        self._after_report(meeting, checkpoint)

    def _log(self, meeting: Meeting, name: str | None, *, is_committed: bool = False) -> bool:
        try:
            log_once(self._writer, meeting, name, is_committed=is_committed)
        except StorageError as error:
            self._refuse(meeting, refusal_of(error))
            return False
        return True

    def _on_collective(self, rank: int, question: protocol.Call) -> None:
        meeting = self._arrive(rank, question)
        if meeting is None:
            return
        if not meeting.complete:
            self._late.begin()
            return
        first = meeting.calls[0]
        answer: protocol.Message = protocol.Proceed()
        if isinstance(first, protocol.BroadcastCall):
            answer = protocol.Delivered(first.data or b"")
        elif isinstance(first, protocol.PreemptionCall):
            answer = protocol.PreemptionState(None, {})
        self._meetings.close(meeting)
        self._answers.answer(meeting, meeting.unanswered, protocol.body(answer))

    def _arrive(self, rank: int, question: protocol.Call) -> Meeting | None:
        """The meeting that the call belongs to, or None if the call has been refused."""
        meeting = self._meetings.arrive(rank, question)
        call = question if isinstance(question, protocol.ReportCall) else None
        # A report that has returned on a rank goes on as long as the others come.
        has_returned = bool(meeting.promised) or (call is not None and call.admitted)
        if len(meeting.calls) == 1:
            meeting.latest = self._latest
            # Nor is one that has returned, or is about to, refused for what became of the one before: the next one is.
            if self._upload_failures and call is not None and not self._meetings.has_admitted(meeting.ordinal):
                failure = self._upload_failures.take()
                meeting.refusal = meeting.refusal or failure
        if self.ends.ending is not None and not has_returned:
            meeting.refusal = meeting.refusal or self.ends.ending
        if meeting.refusal is not None:
            # Where it has returned on other ranks, and its failure is only to be warned of, it returns here.
            if call is not None and (call.admitted or (meeting.told_failure and not call.waits)):
                self._answers.promise(meeting, rank)
            self._refuse(meeting, meeting.refusal)
            return None
        return meeting

    def _on_finished(self, rank: int, finished: protocol.Finished) -> None:
        self.ends.values[rank] = finished.value
        for meeting in self._meetings.leave(rank):
            assert meeting.refusal is not None
            self._refuse(meeting, meeting.refusal)
        self._processes.finished(rank)

    def _on_failed(self, rank: int, failed: protocol.Failed) -> None:
        self.ends.interrupted |= failed.interrupted
        self._processes.finished(rank)
        self._fail(rank, from_failed(rank, failed))

    def _on_exit(self, rank: int, ended: Exit) -> None:
        self._processes.ended(rank)
        self._room.forget(rank)
        self._listings.forget(rank)
        if rank not in self.ends.known:
            by_us = ended.code == -signal.SIGINT or (
                ended.code == -signal.SIGKILL and rank in self._processes.killed and not ended.detail
            )
            self._fail(rank, from_exit(rank, ended), by_us=by_us)
        elif self.ends.ending is not None:
            self._refuse_open(self.ends.ending)

    def _fail(self, rank: int, error: BaseException, *, by_us: bool = False) -> None:
        if self.ends.fail(rank, error, by_us=by_us):
            self._processes.after_failure()
        if self.ends.ending is not None:
            self._refuse_open(self.ends.ending)
        self._room.reopen()

    def _must_wait(self) -> bool:
        """Whether ranks wait for storage only, and need their files until it is done; or may complete a report."""
        hopes = any(not each.complete and self._may_complete(each) for each in self._meetings.open.values())
        return self._rounds.anyone_waits() or (hopes and time.monotonic() < self.ends.ending_since + _PROMISE_S)

    # Refusals

    def _refuse_open(self, refusal: protocol.Refused) -> None:
        """Ends the wait of all that wait for a rank; a meeting that is complete goes on to its commit.

        So does one in which a report has returned already, while those that are missing may still come.
        """
        for meeting in list(self._meetings.open.values()):
            if not meeting.complete and not self._may_complete(meeting):
                self._refuse(meeting, refusal)

    def _may_complete(self, meeting: Meeting) -> bool:
        """Whether a report that has returned on some ranks may still be made by the others."""
        return bool(meeting.promised) and self._processes.alive.difference(self.ends.known).issuperset(meeting.missing)

    def _refuse(self, meeting: Meeting, refusal: protocol.Refused) -> None:
        meeting.refusal = refusal
        # First remove what was stored: a caller that is told may delete its files, or report the name again.
        if self._rounds.cancel(meeting, HoldfastError(refusal.text)):
            return
        ranks = meeting.unanswered
        if self.ends.ending is not None:
            self._processes.told.update(ranks)
        self._answers.answer(meeting, ranks, protocol.body(refusal))
        told = self._answers.settle(meeting, None, refusal.kind, refusal.text)
        if told and not meeting.failure_noted:
            meeting.failure_noted = True
            meeting.told_failure = not self._limits.raises_upload_errors and self.ends.ending is None
            # When the attempt ends anyway, it ends for a reason of its own.
            self._upload_failures.add(
                told[0], meeting.report(told[0]).index, refusal, is_ending=self.ends.ending is not None
            )
        if meeting.complete:
            self._meetings.close(meeting)
