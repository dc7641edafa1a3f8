"""What the trackers' callbacks have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_seconds
from holdfast.controller.callbacks import RunContext, UserCallback
from holdfast.errors import ConfigurationError, TrainingInterrupted
from holdfast.tracking.entry import Scalar, entry_of, parameters_of
from holdfast.tracking.sender import Sender
from holdfast.tracking.tracker import Ending, Tracker


class TrackerCallback(UserCallback):
    """Derive from it for another tracker, and pass an instance by `RunConfig(callbacks=[...])`.

    Every report goes to the tracker in a thread of its own, with rank 0's metrics, so training never waits for it. What fails there is
    warned of once and ends nothing. At the end of `fit()` what is on its way may arrive, for `flush_timeout_s` at most.
    """

    name = "the tracker"
    """What warnings call it."""

    def __init__(self, *, step: str | None = None, flush_timeout_s: float = 10.0) -> None:
        """Takes what holds for all trackers.

        Args:
            step: A metric that is the axis, such as `global_step` or `a/b` of a nested one; by default the index of the report.
            flush_timeout_s: How long the end of `fit()` may wait for the tracker, seconds.

        Raises:
            ConfigurationError: An argument cannot work.
        """
        if step is not None and not isinstance(step, str):
            raise ConfigurationError(f"{type(self).__name__}: step must be the name of a metric, not {step!r}")
        check_seconds(f"{type(self).__name__}: flush_timeout_s", flush_timeout_s)
        self._step = step
        self._flush_timeout_s = flush_timeout_s
        self._senders: dict[str, Sender] = {}

    @abstractmethod
    def open_tracker(self, run_context: RunContext, parameters: Mapping[str, Scalar]) -> Tracker:
        """Opens the tracker's run that belongs to ours, the same as before where there is one already.

        Called in a thread of its own, which may wait; what it raises is warned of, and it is called again for the next report.

        Args:
            run_context: Which run; `run_id` is the same in every `fit()` of it.
            parameters: The `train_loop_config`, flat.
        """

    def after_report(
        self, run_context: RunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Hands a report to the thread."""
        sender = self._senders.get(run_context.run_id)
        if sender is None:
            parameters = parameters_of(run_context.train_loop_config)
            sender = Sender(self.name, lambda: self.open_tracker(run_context, parameters))
            self._senders[run_context.run_id] = sender
        path = checkpoint.path if checkpoint is not None else None
        sender.send(entry_of(run_context.report or 0, metrics[0], path, self._step))

    def after_run(self, run_context: RunContext, error: BaseException | None) -> None:
        """Waits for the thread, within its limit."""
        sender = self._senders.pop(run_context.run_id, None)
        if sender is None:
            return
        if error is None:
            ending = Ending.SUCCEEDED
        else:
            ending = Ending.INTERRUPTED if isinstance(error, TrainingInterrupted) else Ending.FAILED
        sender.finish(ending, self._flush_timeout_s)
