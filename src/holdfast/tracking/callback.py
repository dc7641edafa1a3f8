"""What the trackers' callbacks have in common."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_seconds
from holdfast.controller.callbacks import RunContext, UserCallback
from holdfast.errors import ConfigurationError, TrainingInterrupted
from holdfast.metrics import flatten
from holdfast.tracking.axis import Axis
from holdfast.tracking.entry import Entry, Scalar, parameters_of, scalars_of, storable
from holdfast.tracking.sender import Sender
from holdfast.tracking.tracker import Ending, Tracker

logger = logging.getLogger("holdfast")


class TrackerCallback(UserCallback):
    """Derive from it for another tracker, and pass an instance by `RunConfig(callbacks=[...])`.

    Every report goes to the tracker in a thread of its own, with rank 0's metrics, so training never waits for it. What fails there is
    warned of and ends nothing; a tracker that was away gets what it missed. At the end of `fit()` what is on its way may arrive, for
    `flush_timeout_s` at most; one that is still starting may take a minute for that before.
    """

    name = "the tracker"
    """What warnings call it."""

    def __init__(self, *, step: str | None = None, flush_timeout_s: float = 10.0) -> None:
        """Takes what holds for all trackers.

        Args:
            step: A metric that is the axis, such as `global_step` or `a/b` of a nested one; by default the index of the report. A report
                without it is at the last step that its attempt had reached, and left out, with a warning, where there is none.
            flush_timeout_s: How long the end of `fit()` may wait for a tracker that has started, seconds.

        Raises:
            ConfigurationError: An argument cannot work.
        """
        if step is not None and not isinstance(step, str):
            raise ConfigurationError(f"{type(self).__name__}: step must be the name of a metric, not {step!r}")
        check_seconds(f"{type(self).__name__}: flush_timeout_s", flush_timeout_s)
        self._step = step
        self._flush_timeout_s = flush_timeout_s
        self._tracked: dict[str, _Tracked] = {}

    @abstractmethod
    def open_tracker(self, run_context: RunContext, parameters: Mapping[str, Scalar]) -> Tracker:
        """Opens the tracker's run that belongs to ours, the same as before where there is one already.

        Called in a thread of its own, which may wait. What it raises is warned of, and it is called again after a pause; also after
        the tracker's `log` raised an OSError.

        Args:
            run_context: Which run; `run_id` is the same in every `fit()` of it.
            parameters: The `train_loop_config`, flat.
        """

    def after_report(
        self, run_context: RunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Hands a report to the thread."""
        tracked = self._tracked.get(run_context.run_id)
        if tracked is None:
            tracked = self._tracked[run_context.run_id] = _Tracked(self, run_context, self._step)
        tracked.take(run_context, metrics[0], checkpoint)

    def after_run(self, run_context: RunContext, error: BaseException | None) -> None:
        """Waits for the thread, within its limit."""
        tracked = self._tracked.pop(run_context.run_id, None)
        if tracked is None:
            return
        if error is None:
            ending = Ending.SUCCEEDED
        else:
            ending = Ending.INTERRUPTED if isinstance(error, TrainingInterrupted) else Ending.FAILED
        tracked.sender.finish(ending, self._flush_timeout_s)


class _Tracked:
    """One `fit()` in one tracker."""

    def __init__(self, callback: TrackerCallback, run_context: RunContext, step: str | None) -> None:
        self._name = callback.name
        self._step = step
        self._axis = Axis(step)
        self._has_warned = False
        config = run_context.train_loop_config
        # To show a large config takes its time, too.
        self.sender = Sender(callback.name, lambda: callback.open_tracker(run_context, parameters_of(config)))

    def take(self, run_context: RunContext, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
        attempt, report = run_context.attempt, run_context.report or 0
        flat = flatten(metrics)
        step = self._axis.step_of(attempt, report, flat)
        if step is None:
            self._warn(report, flat)
            return
        path = storable(checkpoint.path) if checkpoint is not None else None
        self.sender.send(Entry(step, scalars_of(flat), path, attempt=attempt, report=report))

    def _warn(self, report: int, metrics: Mapping[str, Any]) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        there = ", ".join(map(repr, metrics)) or "none at all"
        logger.warning(
            "%s leaves out report %d, and others like it: step=%r is to be a number among the metrics, of this report or of one before it in "
            "the same attempt; there are: %s",
            self._name,
            report,
            self._step,
            there,
        )
