"""Runs a job to its end: attempt after attempt, each from the latest valid checkpoint."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from holdfast.controller.attempt import Attempt
from holdfast.controller.callbacks import Callbacks
from holdfast.controller.failure import by_cause, in_full, mistakes_in, signal_name, summarise
from holdfast.controller.limits import Limits
from holdfast.controller.report_log import metrics_of
from holdfast.controller.score_watch import ScoreWatch
from holdfast.errors import DamagedCheckpointError, StorageError, TrainingInterrupted, WorkerDiedError, WorkerStartError
from holdfast.metrics import decode_metrics
from holdfast.persistence import layout
from holdfast.persistence.logs import append_text
from holdfast.persistence.right_of_way import never_preempting
from holdfast.worker import protocol
from holdfast.worker.shipping import pack_checkpoint

if TYPE_CHECKING:
    from holdfast.checkpoint import Checkpoint
    from holdfast.config import CheckpointConfig, FailureConfig
    from holdfast.controller.group import Engine
    from holdfast.controller.meetings import Meeting
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor
    from holdfast.controller.validations import Validations
    from holdfast.origin import Origin
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint

logger = logging.getLogger("holdfast")
# How often in a row a start may fail by default, and how long the pauses between are: some 12 s in all.
_FALSE_STARTS = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        metrics: Rank 0's last report as stored JSON, or None where nothing was reported.
        value: cloudpickle of what rank 0 returned.
        failures: The last attempt's exceptions by rank, empty after success.
        controller_failure: What failed on the driver's own side.
        signum: The signal that stopped it.
        attempts: How many groups were started.
        has_reported: Whether every rank has made a report, though perhaps it could not be stored.
        is_lasting: Whether the failures were those of the attempt before, and would be those of the next.
    """

    metrics: bytes | None = None
    value: bytes | None = None
    failures: dict[int, BaseException] = field(default_factory=dict)
    controller_failure: BaseException | None = None
    signum: int | None = None
    attempts: int = 0
    has_reported: bool = False
    is_lasting: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the function returned on every rank."""
        return not self.failures and self.controller_failure is None and self.signum is None


class Controller:
    """Owns the loop of one `fit()`; all methods but `stop_soon` belong to its thread."""

    def __init__(
        self,
        *,
        reactor: Reactor,
        writer: RunWriter,
        engine: Engine,
        observer: RunObserver,
        make_job: Callable[[int, int, int, int, str | None], protocol.Job],
        open_checkpoint: Callable[[str], Checkpoint],
        failure_config: FailureConfig,
        checkpoint_config: CheckpointConfig,
        limits: Limits,
        callbacks: Callbacks,
        make_validations: Callable[[Callable[[], None]], Validations] | None,
        origin: Origin | None = None,
    ) -> None:
        """Takes everything that a job needs.

        Args:
            make_validations: Given what is to be called after each; None where nothing is validated.
            make_job: `(rank, world_size, attempt, first_report, checkpoint) -> Job`.
            open_checkpoint: The checkpoint of a name, for callbacks.
            origin: What attempts begin with while the run has no checkpoint of its own.
        """
        self._reactor = reactor
        self._writer = writer
        self._engine = engine
        self._observer = observer
        self._make_job = make_job
        self._open_checkpoint = open_checkpoint
        self._origin = origin
        self._failure_config = failure_config
        self._limits = limits
        self._callbacks = callbacks
        self._validations = make_validations(self._validation_settled) if make_validations is not None else None
        self._scores = ScoreWatch(
            checkpoint_config.checkpoint_score_attribute,
            writer.checkpoints(),
            may_come=self._validations is not None,
            tell=observer.message,
        )
        self._attempt: Attempt | None = None
        self._outcome = Outcome()
        self._begin: str | None = None
        self._told_forgotten = False
        self._signals = 0
        self._asked = 0

    def stop_soon(self, signum: int) -> None:
        """Asks for the end: the first call lets workers unwind and commits finish, the second kills.

        Safe in a signal handler and from any thread.
        """
        self._asked += 1
        if self._asked > 1:
            self._writer.store.hurry()  # the loop itself may be waiting for it
        self._reactor.post(lambda: self._stop(signum))

    def run(self) -> Outcome:
        """Runs attempts until one succeeds, a budget is used up, or someone stops it. Never raises for those.

        After success it waits for the validations that are open; otherwise they are left to the next driver.
        """
        with never_preempting():
            outcome = self._run()
            self._scores.close()
            return outcome

    def _run(self) -> Outcome:
        validations = self._validations
        if validations is None:
            if pending := self._writer.validations.pending():
                self._observer.message(
                    f"checkpoints that wait for a validation: {len(pending)}. This trainer has no validation_config, so nobody "
                    "validates them, and retention takes them as they are"
                )
            return self._run_attempts()
        try:
            validations.resume()
            outcome = self._run_attempts()
            if outcome.succeeded and not validations.idle:
                self._observer.message(f"training is over; waiting for the validation of {validations.summary()}")
                self._reactor.run_until(lambda: validations.idle or outcome.signum is not None)
        finally:
            validations.close()
        return outcome

    def _run_attempts(self) -> Outcome:
        outcome = self._outcome
        number, first_report = self._writer.first_attempt, self._writer.first_report
        failures = false_starts = 0
        earlier: tuple[str | None, frozenset[str]] | None = None
        while True:
            try:
                attempt = self._run_attempt(number, first_report)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run ends with it and its Result
                false_starts += 1
                if self._may_try_again(error, false_starts):
                    continue
                outcome.controller_failure = error if outcome.signum is None else None
                return outcome
            if attempt is None:
                return outcome
            false_starts = 0
            outcome.attempts += 1
            has_reported = attempt.next_report > first_report
            number, first_report = number + 1, attempt.next_report
            outcome.has_reported |= has_reported
            ends = attempt.ends
            outcome.failures = ends.failures or ends.aftermath
            if ends.interrupted and outcome.signum is None:
                outcome.signum = signal.SIGINT
            if outcome.signum is not None:
                return outcome
            if not outcome.failures:
                outcome.value = ends.values.get(0)
                return outcome
            failures += 1
            limit = self._failure_config.max_failures
            # After a report the next attempt may begin further on. And one alone may have passed: a file system that could not be made.
            mistakes = frozenset() if has_reported else mistakes_in(outcome.failures)
            outcome.is_lasting = bool(mistakes) and (self._began_with, mistakes) == earlier
            earlier = self._began_with, mistakes
            restart = (limit < 0 or failures <= limit) and not outcome.is_lasting
            self._tell_failure(attempt.number, outcome.failures, restart)
            if not restart:
                return outcome

    def _run_attempt(self, number: int, first_report: int) -> Attempt | None:
        """One life of the group; None where the run was stopped before it began."""
        latest = self._writer.latest_valid()
        name = latest.name if latest is not None else None
        origin = self._origin.open() if self._origin is not None and latest is None else None
        world_size = self._engine.world_size()
        self._writer.begin_attempt(number)
        attempt = Attempt(
            number,
            world_size,
            first_report,
            reactor=self._reactor,
            writer=self._writer,
            observer=self._observer,
            limits=self._limits,
            validations=self._validations,
            after_report=self._reported,
        )
        kept = self._writer.keeper.prepare_restart(latest) if latest is not None else {}
        packed = pack_checkpoint(origin) if origin is not None else b""
        jobs = [
            msgspec.structs.replace(
                self._make_job(rank, world_size, number, first_report, name),
                kept=kept,
                staging=self._writer.staging.paths,
                origin=packed,
            )
            for rank in range(world_size)
        ]
        self._began_with = self._begin = name if origin is None else origin.path
        self._observer.started(number, world_size, self._begin)
        self._engine.await_ready(self._reactor, lambda: self._outcome.signum is not None)
        if self._outcome.signum is not None:
            return None
        self._attempt = attempt
        try:
            attempt.begin(self._engine.start(self._reactor, jobs, attempt.listener))
            if self._outcome.signum is not None:
                attempt.stop(_stopped(self._outcome.signum))
            self._reactor.run_until(lambda: attempt.over)
            attempt.settle()
        except BaseException:
            attempt.kill()
            raise
        finally:
            self._attempt = None
            attempt.close()
        if name is not None:
            self._doubt(name, attempt, has_reported=attempt.next_report > first_report)
        return attempt

    def _doubt(self, name: str, attempt: Attempt, *, has_reported: bool) -> None:
        """What an attempt began with may be why it failed; a worker that was killed says nothing of that."""
        errors = [*attempt.ends.failures.values(), *attempt.ends.aftermath.values()]
        is_damaged = any(isinstance(error, DamagedCheckpointError) for error in errors)
        has_raised = any(not isinstance(error, WorkerDiedError) for error in attempt.ends.failures.values())
        if is_damaged or (has_raised and not has_reported):
            self._writer.doubt(name, is_damaged=is_damaged)

    def _may_try_again(self, error: Exception, times: int) -> bool:
        """Waits where a start failed of what may pass by itself; False where the run ends with it."""
        limit = self._failure_config.controller_failure_limit
        if not isinstance(error, WorkerStartError | StorageError) or times > (_FALSE_STARTS if limit < 0 else limit):
            return False
        pause_s = min(_FIRST_PAUSE_S * 3 ** (times - 1), _LONGEST_PAUSE_S)
        self._observer.message(f"the workers could not be started and are tried again in {pause_s:.1f} s: {error}")
        over: list[bool] = []
        timer = self._reactor.after(pause_s, lambda: over.append(True))
        self._reactor.run_until(lambda: bool(over) or self._outcome.signum is not None)
        timer.cancel()
        return self._outcome.signum is None

    def _stop(self, signum: int) -> None:
        self._signals += 1
        self._outcome.signum = self._outcome.signum or signum
        if self._signals == 1:
            self._observer.message(
                f"stopping: workers are asked to end, commits are finished (up to {self._limits.stop_grace_s:g} s); "
                "once more ends at once"
            )
            if self._attempt is not None:
                self._attempt.stop(_stopped(signum))
        elif self._attempt is not None:
            self._attempt.give_up()

    def _reported(self, meeting: Meeting, checkpoint: CommittedCheckpoint | None) -> None:
        report, metrics = meeting.report(0).index, metrics_of(meeting)
        self._outcome.metrics = metrics[0]
        self._observer.reported(report, metrics[0])
        self._tell_if_forgotten(meeting)
        if checkpoint is not None:
            if self._origin is not None and self._origin.is_held:
                # From now on nobody begins with it. Not here: files that go take their time.
                self._writer.submit(self._origin.let_go)
            seconds = time.monotonic() - meeting.since
            self._observer.committed(
                checkpoint.name, checkpoint.size_bytes, seconds, self._scores.score_of(checkpoint, metrics[0])
            )
        if not self._callbacks:
            return
        attempt = self._attempt.number if self._attempt is not None else 0
        decoded = [decode_metrics(each) for each in metrics]
        opened = self._open_checkpoint(checkpoint.name) if checkpoint is not None else None
        self._callbacks.reported(attempt, report, decoded, opened)

    def _tell_if_forgotten(self, meeting: Meeting) -> None:
        """The first report of an attempt shows whether any rank has asked for what the attempt is to go on from, or read it."""
        begin, self._begin = self._begin, None
        if begin is None or self._told_forgotten:
            return
        if all(meeting.report(rank).ignores_checkpoint for rank in range(meeting.world_size)):
            self._told_forgotten = True
            self._observer.message(
                f"the function did not ask for {begin} (holdfast.get_checkpoint()) before its first report; unless it goes on by other "
                "means, it trains from the beginning"
            )

    def _validation_settled(self) -> None:
        if self._attempt is not None:
            self._attempt.validation_settled()

    def _tell_failure(self, attempt: int, failures: dict[int, BaseException], restart: bool) -> None:
        """In full in the run's logs, and for a person where nothing is raised: the first, if a summary does not say it all."""
        for rank, error in failures.items():
            self._writer.submit(append_text, self._writer.store, layout.log_key(attempt, rank), in_full(error))
        if restart and not any(isinstance(error, WorkerDiedError) for error in failures.values()):
            first = by_cause(failures)[0]
            for line in in_full(failures[first]).splitlines():
                self._observer.worker_line(first, line, is_stderr=True)
        self._observer.failed(attempt, summarise(failures), restart)
        self._callbacks.failed(attempt, failures)


def _stopped(signum: int) -> protocol.Refused:
    return protocol.Refused(TrainingInterrupted.kind, f"the run is being stopped ({signal_name(signum)})")
