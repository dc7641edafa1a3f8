"""What a measure is: a job on every side, its figures, and the bars they must meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side import Side

Sample = Mapping[str, float]
"""One run's figures by their names; a name begins with whose it is: `ours`, `peer`, or another baseline."""

NO_POLLING = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0"}
"""The peer's polling interval forced to nothing: its best case, which nobody runs."""

MIB = 1 << 20
GIB = 1 << 30

Place = Callable[[], AbstractContextManager[Path | None]]
"""Where a job's directory is made: by default where temporary files go."""


@dataclass(frozen=True)
class Limit:
    """A bar: `figure` must be at most (or at least) a number, or a factor of another figure."""

    figure: str
    at_most: float = math.inf
    at_least: float = -math.inf
    of: str | None = None

    def holds(self, medians: Mapping[str, float]) -> bool | None:
        """Whether it holds; None where a figure is missing."""
        value = medians.get(self.figure)
        base = 1.0 if self.of is None else medians.get(self.of)
        if value is None or base is None:
            return None
        return self.at_least * base <= value <= self.at_most * base if base else None

    def text(self) -> str:
        """The bar as the table shows it."""
        least = self.at_least > -math.inf
        number = self.at_least if least else self.at_most
        amount = f"{number:,g}" if self.of is None else f"{number:.3g} × {self.of}"
        return f"{self.figure} {'≥' if least else '≤'} {amount}"


@dataclass(frozen=True)
class Measure:
    """One row or more of the table.

    Attributes:
        name: For `--only`.
        title: What is measured, for the table.
        sample: Measures once; the peer's side is None where it is left out.
        is_slow: The peer takes most of a minute: `--slow-runs` says how often.
    """

    name: str
    title: str
    sample: Callable[[Side, Side | None], Sample]
    limits: Sequence[Limit]
    is_slow: bool = True
