"""Where the reports of a run lie on a tracker's axis."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

_END = 2**63
"""Trackers count steps in 64 bits with a sign."""


class Axis:
    """The steps of one `fit()`.

    A report without the metric that was chosen is at the last step that its attempt had reached. Before the first it has no place: a new
    attempt may begin anywhere, and the index of the report would be a place on another axis.

    Args:
        metric: The one that is the step; None for the index of the report.
    """

    def __init__(self, metric: str | None) -> None:
        self._metric = metric
        self._attempt: int | None = None
        self._last: int | None = None

    def step_of(self, attempt: int, report: int, metrics: Mapping[str, Any]) -> int | None:
        """The step of the next report, or None where it has no place.

        Args:
            attempt: The life of the worker group that made it.
            report: Its index over all attempts.
            metrics: Flat.
        """
        if self._metric is None:
            return report
        if attempt != self._attempt:
            self._attempt, self._last = attempt, None
        value = metrics.get(self._metric)
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and abs(value) < _END:
            self._last = int(value)
        return self._last
