"""What of a report goes to a tracker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from holdfast.metrics import flatten

Scalar = bool | int | float | str
_MAX_TEXT = 500


@dataclass(frozen=True)
class Entry:
    """One report.

    Attributes:
        step: Where it lies on the axis: the report's index, or the metric that was named for it.
        metrics: Rank 0's, flat (`a/b`); numbers (also those that are not finite), booleans and texts.
        checkpoint: The path or URL of the one that it committed, or None.
        time_s: When it was made, seconds since the epoch.
    """

    step: int
    metrics: Mapping[str, Scalar]
    checkpoint: str | None = None
    time_s: float = field(default_factory=time.time)

    @property
    def numbers(self) -> dict[str, float]:
        """What can be drawn; True is 1."""
        return {name: float(value) for name, value in self.metrics.items() if not isinstance(value, str)}


def entry_of(report: int, metrics: Mapping[str, Any], checkpoint: str | None, step: str | None) -> Entry:
    """A report as trackers take it.

    Args:
        report: Its index.
        metrics: Rank 0's, as they were reported; lists and None have no place on an axis and are left out.
        checkpoint: Where the one that it committed lies.
        step: The metric that is the step; a report without such a number is at its index.
    """
    flat = flatten(metrics)
    scalars = {name: value for name, value in flat.items() if isinstance(value, bool | int | float | str)}
    place = flat.get(step) if step is not None else None
    is_number = isinstance(place, int | float) and not isinstance(place, bool) and isfinite(place)
    return Entry(int(place) if is_number and place is not None else report, scalars, checkpoint)


def parameters_of(config: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """A `train_loop_config` as trackers take hyperparameters: flat, and what is no number or text as a short text."""
    return {
        name: value if isinstance(value, bool | int | float | str) else _as_text(value)
        for name, value in flatten({str(key): value for key, value in (config or {}).items()}).items()
    }


def _as_text(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a user's class may do anything when it is shown
        text = f"<{type(value).__qualname__}, which cannot be shown: {error}>"
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
