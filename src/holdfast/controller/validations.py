"""Validates committed checkpoints beside training, one after another, each in a process of its own."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.controller.failure import signal_name
from holdfast.controller.group import Exit, Listener, WorkerGroup
from holdfast.errors import HoldfastError, WorkerStartError
from holdfast.metrics import decode_metrics, merge_metrics, score_of
from holdfast.worker import protocol
from holdfast.worker.validation import pack_validation, unpack_metrics

if TYPE_CHECKING:
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor, Timer
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint

# The name of the checkpoint, what its process runs, who hears of it; None where it cannot be started yet.
Start = Callable[[str, bytes, Listener], WorkerGroup | None]

# How often in a row a process may not start, and the pause between.
_START_TRIES = 5
_PAUSE_S = 1.0
# Each that waits holds a checkpoint: told of when so many do, and at each tenfold.
_MANY = 10
_NAMED = 3


@dataclass
class _Waiting:
    """Attributes: trusted: This driver has written the checkpoint, so its bytes need not be compared."""

    checkpoint: CommittedCheckpoint
    task: protocol.ValidationTask
    trusted: bool


@dataclass
class _Running:
    waiting: _Waiting
    group: WorkerGroup
    timer: Timer | None
    timeout_s: float | None
    since_s: float = field(default_factory=time.monotonic)
    value: bytes | None = None
    failure: str | None = None
    traceback: str | None = None
    is_late: bool = False


class Validations:
    """The validations of one `fit()`; they belong to the run, and go on while its workers are restarted.

    A checkpoint that waits for its validation is kept whatever retention says. Dying leaves it noted as pending: the
    next driver validates it.

    Args:
        function: As `pack` packed it.
        defaults: Of the arguments and the time limit.
        score: The metric that ranks checkpoints: a validation that finds no number for it has failed.
        start: Starts a process.
        settled: Called after each.
    """

    def __init__(
        self,
        reactor: Reactor,
        writer: RunWriter,
        observer: RunObserver,
        *,
        function: bytes,
        defaults: protocol.ValidationTask,
        score: str | None,
        start: Start,
        settled: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._writer = writer
        self._observer = observer
        self._function = function
        self._defaults = defaults
        self._score = score
        self._start = start
        self._settled = settled
        self._queue: deque[_Waiting] = deque()
        self._running: _Running | None = None
        self._ending: CommittedCheckpoint | None = None
        self._tries = 0
        self._many = _MANY
        self._pause: Timer | None = None
        self._stopped = False

    def resume(self) -> None:
        """Takes up what an earlier driver did not come to, with the arguments of this one's configuration."""
        for checkpoint in self._writer.validations.pending():
            self._add(_Waiting(checkpoint, protocol.ValidationTask(), trusted=False))

    def add(self, checkpoint: CommittedCheckpoint, task: protocol.ValidationTask) -> None:
        """A report asked for it, and its checkpoint is committed and noted as pending."""
        self._add(_Waiting(checkpoint, task, trusted=True))

    def _add(self, waiting: _Waiting) -> None:
        self._writer.validations.hold(waiting.checkpoint)
        self._queue.append(waiting)
        if len(self._queue) >= self._many:
            self._many *= 10
            self._observer.message(
                f"{len(self._queue)} checkpoints wait for their validation and are kept until then; validate fewer of them, or "
                "make it quicker"
            )
        self._next()

    @property
    def idle(self) -> bool:
        """Whether none runs or waits."""
        return not self._open

    @property
    def waiting(self) -> list[str]:
        """The names of the checkpoints that have no outcome, in order."""
        return [checkpoint.name for checkpoint in self._open]

    def summary(self) -> str:
        """The same for a person, however many they are."""
        names = self.waiting
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return ", ".join(names[:_NAMED]) + more

    def settled_before(self, report: int) -> bool:
        """Whether no checkpoint of an earlier report waits for its outcome."""
        return all(checkpoint.report_index >= report for checkpoint in self._open)

    @property
    def _open(self) -> list[CommittedCheckpoint]:
        first = [self._ending] if self._ending is not None else []
        if self._running is not None:
            first.append(self._running.waiting.checkpoint)
        return first + [waiting.checkpoint for waiting in self._queue]

    def close(self) -> None:
        """Ends what runs; it stays pending. Safe to repeat."""
        self._stopped = True
        self._queue.clear()
        if self._pause is not None:
            self._pause.cancel()
        running, self._running = self._running, None
        if running is not None:
            if running.timer is not None:
                running.timer.cancel()
            running.group.kill()
            running.group.close()

    def _next(self) -> None:
        is_busy = self._running is not None or self._ending is not None or self._pause is not None
        if is_busy or self._stopped or not self._queue:
            return
        first = self._queue[0]
        arguments = first.task.arguments or self._defaults.arguments or b""
        timeout_s = first.task.timeout_s if first.task.timeout_s is not None else self._defaults.timeout_s
        payload = pack_validation(self._function, arguments, trusted=first.trusted)
        listener = Listener(self._on_message, self._on_exit, lambda *_: None)
        try:
            group = self._start(first.checkpoint.name, payload, listener)
        except (WorkerStartError, OSError) as error:
            self._not_started(error)
            return
        if group is None:
            self._try_later()
            return
        self._queue.popleft()
        timer = self._reactor.after(timeout_s, self._too_late) if timeout_s is not None else None
        self._running = _Running(first, group, timer, timeout_s)

    def _not_started(self, error: BaseException) -> None:
        self._tries += 1
        if self._tries < _START_TRIES:
            self._try_later()
            return
        self._observer.message(
            f"validations cannot be started ({error}); {self.summary()} are left to the next fit() of this run"
        )
        self._stopped = True
        self._queue.clear()
        self._settled()

    def _try_later(self) -> None:
        self._pause = self._reactor.after(_PAUSE_S, self._again)

    def _again(self) -> None:
        self._pause = None
        self._next()

    def _too_late(self) -> None:
        if self._running is not None:
            self._running.is_late = True
            self._running.group.kill()

    def _on_message(self, rank: int, message: protocol.Question) -> None:
        running = self._running
        if running is None:
            return
        if isinstance(message, protocol.Finished):
            running.value = message.value
        elif isinstance(message, protocol.Failed):
            running.failure = message.summary
            running.traceback = message.traceback
            self._observer.validation_line(running.waiting.checkpoint.name, message.traceback.rstrip(), True)

    def _on_exit(self, rank: int, ended: Exit) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        if running.timer is not None:
            running.timer.cancel()
        running.group.close()
        if ended.is_lost and not running.is_late:
            self._queue.appendleft(running.waiting)
            self._not_started(WorkerStartError(ended.detail))
            return
        self._tries = 0
        checkpoint = running.waiting.checkpoint
        status, metrics, detail = self._outcome(running, ended)
        if metrics is None:
            self._observer.message(f"the validation of {checkpoint.name} {detail}")
        else:
            self._observer.validated(checkpoint.name, metrics, time.monotonic() - running.since_s)
            self._look_for_score(checkpoint, metrics)
        self._ending = checkpoint
        noted = self._writer.validations.end(
            checkpoint, status, metrics, error=detail or None, last_lines=running.traceback
        )
        self._reactor.when_done(noted, lambda _: self._ended())

    def _look_for_score(self, checkpoint: CommittedCheckpoint, metrics: bytes) -> None:
        if self._score is None:
            return
        score = score_of(decode_metrics(merge_metrics(checkpoint.metrics, metrics)), self._score)
        if score is None or math.isnan(score):
            self._observer.message(
                f"{checkpoint.name} has no number under {self._score!r}, which ranks checkpoints: it ranks below all that have one"
            )

    def _ended(self) -> None:
        self._ending = None
        self._settled()
        self._next()

    def _outcome(self, running: _Running, ended: Exit) -> tuple[str, bytes | None, str]:
        """Status, metrics, and for a person what went wrong."""
        if running.is_late:
            return "timeout", None, f"was ended after {running.timeout_s:g} s, its time limit"
        if running.failure is not None:
            return "failed", None, f"failed: {running.failure}"
        if running.value is None:
            what = f"was killed by {signal_name(-ended.code)}" if ended.code < 0 else f"exited with code {ended.code}"
            return "failed", None, f"failed: its process {what}" + (f" ({ended.detail})" if ended.detail else "")
        try:
            metrics = unpack_metrics(running.value)
            if self._score is not None:
                score_of(decode_metrics(metrics), self._score)
        except HoldfastError as error:
            return "failed", None, f"failed: {error}"
        return "validated", metrics, ""
