"""Validates committed checkpoints beside training, one after another, each in a process of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.controller.failure import signal_name
from holdfast.controller.group import Exit, Listener, WorkerGroup
from holdfast.errors import HoldfastError, WorkerStartError
from holdfast.worker import protocol
from holdfast.worker.validation import pack_validation, unpack_metrics

if TYPE_CHECKING:
    from holdfast.controller.observer import RunObserver
    from holdfast.controller.reactor import Reactor, Timer
    from holdfast.persistence.writer import RunWriter
    from holdfast.records import CommittedCheckpoint

# The name of the checkpoint, what its process runs, who hears of it.
Start = Callable[[str, bytes, Listener], WorkerGroup]

# The zygote may just be replaced by a new one, which imports for some seconds.
_START_TRIES = 20
_START_PAUSE_S = 1.0


@dataclass
class _Running:
    checkpoint: CommittedCheckpoint
    group: WorkerGroup
    timer: Timer | None
    timeout_s: float | None
    since_s: float = field(default_factory=time.monotonic)
    value: bytes | None = None
    failure: str | None = None
    is_late: bool = False


class Validations:
    """The validations of one `fit()`; they belong to the run, and go on while its workers are restarted.

    A checkpoint that waits for its validation is kept whatever retention says. Dying leaves it marked as pending: the
    next driver validates it.

    Args:
        function: As `pack` packed it.
        defaults: Of the arguments and the time limit.
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
        start: Start,
        settled: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._writer = writer
        self._observer = observer
        self._function = function
        self._defaults = defaults
        self._start = start
        self._settled = settled
        self._queue: deque[tuple[CommittedCheckpoint, protocol.ValidationTask]] = deque()
        self._running: _Running | None = None
        self._ending: CommittedCheckpoint | None = None
        self._tries = 0
        self._retry: Timer | None = None
        self._stopped = False

    def resume(self) -> None:
        """Takes up what an earlier driver did not come to, with the arguments of this one's configuration."""
        for checkpoint in self._writer.pending_validations():
            self._writer.begin_validation(checkpoint)
            self._queue.append((checkpoint, protocol.ValidationTask()))
        self._next()

    def add(self, checkpoint: CommittedCheckpoint, task: protocol.ValidationTask) -> None:
        """A report asked for it, and its checkpoint is committed."""
        self._writer.begin_validation(checkpoint)
        self._queue.append((checkpoint, task))
        self._next()

    @property
    def idle(self) -> bool:
        """Whether none runs or waits."""
        return not self.waiting

    @property
    def waiting(self) -> list[str]:
        """The names of the checkpoints that have no outcome, in order."""
        return [checkpoint.name for checkpoint in self._open]

    def settled_before(self, report: int) -> bool:
        """Whether no checkpoint of an earlier report waits for its outcome."""
        return all(checkpoint.report_index >= report for checkpoint in self._open)

    @property
    def _open(self) -> list[CommittedCheckpoint]:
        first = [self._ending] if self._ending is not None else []
        if self._running is not None:
            first.append(self._running.checkpoint)
        return first + [checkpoint for checkpoint, _ in self._queue]

    def close(self) -> None:
        """Ends what runs; it stays pending. Safe to repeat."""
        self._stopped = True
        self._queue.clear()
        if self._retry is not None:
            self._retry.cancel()
        running, self._running = self._running, None
        if running is not None:
            if running.timer is not None:
                running.timer.cancel()
            running.group.kill()
            running.group.close()

    def _next(self) -> None:
        is_busy = self._running is not None or self._ending is not None or self._retry is not None
        if is_busy or self._stopped or not self._queue:
            return
        checkpoint, task = self._queue[0]
        arguments = task.arguments or self._defaults.arguments or b""
        timeout_s = task.timeout_s if task.timeout_s is not None else self._defaults.timeout_s
        listener = Listener(self._on_message, self._on_exit, lambda *_: None)
        try:
            group = self._start(checkpoint.name, pack_validation(self._function, arguments), listener)
        except WorkerStartError as error:
            self._tries += 1
            if self._tries < _START_TRIES:
                self._retry = self._reactor.after(_START_PAUSE_S, self._again)
                return
            self._queue.popleft()
            self._conclude(checkpoint, "failed", None, f"it could not be started: {error}", 0.0)
            return
        self._tries = 0
        self._queue.popleft()
        timer = self._reactor.after(timeout_s, self._too_late) if timeout_s is not None else None
        self._running = _Running(checkpoint, group, timer, timeout_s)

    def _again(self) -> None:
        self._retry = None
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
            self._observer.validation_line(running.checkpoint.name, message.traceback.rstrip(), True)

    def _on_exit(self, rank: int, ended: Exit) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        if running.timer is not None:
            running.timer.cancel()
        running.group.close()
        status, metrics, detail = _outcome(running, ended)
        self._conclude(running.checkpoint, status, metrics, detail, time.monotonic() - running.since_s)

    def _conclude(
        self, checkpoint: CommittedCheckpoint, status: str, metrics: bytes | None, detail: str, seconds: float
    ) -> None:
        if metrics is None:
            self._observer.message(f"the validation of {checkpoint.name} {detail}")
        else:
            self._observer.validated(checkpoint.name, metrics, seconds)
        self._ending = checkpoint
        self._reactor.when_done(self._writer.end_validation(checkpoint, status, metrics), lambda _: self._ended())

    def _ended(self) -> None:
        self._ending = None
        self._settled()
        self._next()


def _outcome(running: _Running, ended: Exit) -> tuple[str, bytes | None, str]:
    """Status, metrics, and for a person what went wrong."""
    if running.is_late:
        return "timeout", None, f"was ended after {running.timeout_s:g} s, its time limit"
    if running.failure is not None:
        return "failed", None, f"failed: {running.failure}"
    if running.value is None:
        what = f"was killed by {signal_name(-ended.code)}" if ended.code < 0 else f"exited with code {ended.code}"
        return "failed", None, f"failed: its process {what}" + (f" ({ended.detail})" if ended.detail else "")
    try:
        return "validated", unpack_metrics(running.value), ""
    except HoldfastError as error:
        return "failed", None, f"failed: {error}"
