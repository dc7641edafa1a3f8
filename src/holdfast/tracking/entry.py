"""What of a report goes to a tracker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from holdfast.metrics import flatten

Scalar = bool | int | float | str
_MAX_TEXT = 500
_MAX_INT = 2**64
_NO_NAME = "_"
"""What stands for an empty name, which no tracker shows."""


@dataclass(frozen=True)
class Entry:
    """One report.

    Attributes:
        step: Where it lies on the axis: the report's index, or the metric that was named for it.
        metrics: Rank 0's, flat (`a/b`); numbers (also those that are not finite), booleans and texts. No name is empty.
        checkpoint: The path or URL of the one that it committed, or None.
        time_s: When it was made, seconds since the epoch.
        attempt: The life of the worker group that made it. Where another begins, steps may go back.
        report: Its index over all attempts, which never goes back.
    """

    step: int
    metrics: Mapping[str, Scalar]
    checkpoint: str | None = None
    time_s: float = field(default_factory=time.time)
    attempt: int = 1
    report: int = 0

    @property
    def numbers(self) -> dict[str, float]:
        """What can be drawn; True is 1."""
        return {name: float(value) for name, value in self.metrics.items() if not isinstance(value, str)}


def scalars_of(metrics: Mapping[str, Any]) -> dict[str, Scalar]:
    """Flat metrics as trackers take them; lists and None have no place on an axis and are left out."""
    return {name or _NO_NAME: value for name, value in metrics.items() if isinstance(value, bool | int | float | str)}


def parameters_of(config: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """A `train_loop_config` as trackers take hyperparameters: flat, and what is no plain number or text as a short text."""
    named = {_as_text(key, str): value for key, value in (config or {}).items()}
    try:
        flat = flatten(named)
    except Exception:  # noqa: BLE001 - it contains itself, or a key that cannot be shown
        flat = named
    return {storable(name) or _NO_NAME: _as_parameter(value) for name, value in flat.items()}


def _as_parameter(value: object) -> Scalar:
    if isinstance(value, bool | str):
        return storable(value) if isinstance(value, str) else value
    # Neither JSON nor the pages that show them have a number for others.
    if isinstance(value, float) and isfinite(value):
        return value
    if isinstance(value, int) and abs(value) < _MAX_INT:
        return value
    return _as_text(value)


def _as_text(value: object, show: Callable[[object], str] = repr) -> str:
    if isinstance(value, str):
        return value
    try:
        text = show(value)
    except Exception as error:  # noqa: BLE001 - a user's class may do anything when it is shown
        text = f"<{type(value).__qualname__}, which cannot be shown: {error}>"
    text = storable(text)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def storable(text: str) -> str:
    """A text without what no file and no database takes: lone surrogates, and the character 0."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
