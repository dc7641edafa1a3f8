"""Where a run stands, in the numbers and words that displays show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import isnan

from holdfast.config import ScoreOrder
from holdfast.errors import FormatError, MetricsError
from holdfast.metrics import decode_metrics, flatten, score_of

_SHOWN_METRICS = 3
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class Status:
    """Plain attributes, each set in one step, so that a drawing thread needs no lock to read them."""

    def __init__(self, run_name: str, score_attribute: str | None, score_order: ScoreOrder) -> None:
        self.run_name = run_name
        self.state = "starting"
        self.attempt = 0
        self.report = 0
        self.metrics = b"{}"
        self.best: float | None = None
        self.upload: tuple[int, float] | None = None
        self.uploaded_bytes = 0
        self._score_attribute = score_attribute
        self._score_order = score_order

    def begin_upload(self, total_bytes: int) -> None:
        """Starts the clock of a checkpoint's writing."""
        self.uploaded_bytes = 0
        self.upload = (total_bytes, time.monotonic())

    def end_upload(self, score: float | None) -> None:
        """Stops it; remembers the best score."""
        self.upload = None
        if score is not None and not isnan(score):
            choose = max if self._score_order == "max" else min
            self.best = score if self.best is None else choose(score, self.best)

    def score_name(self) -> str:
        """What the score is called."""
        return self._score_attribute or "score"

    def parts(self) -> Iterator[str]:
        """The live line, short enough that 80 columns hold what matters."""
        yield self.run_name
        yield self.state if self.attempt <= 1 else f"{self.state}, attempt {self.attempt}"
        if self.report:
            yield f"report {self.report}"
        yield from self._metrics()
        upload, done = self.upload, self.uploaded_bytes
        if upload is not None:
            total, begin = upload
            percent = min(100, done * 100 // total) if total else 100
            speed = done / max(time.monotonic() - begin, 1e-3)
            yield f"saving {percent} % at {format_bytes(speed)}/s"

    def _metrics(self) -> Iterator[str]:
        try:
            metrics = decode_metrics(self.metrics)
            if self._score_attribute is not None:
                score = score_of(metrics, self._score_attribute)
                best = "" if self.best is None else f"best {format_number(self.best)}"
                latest = "" if score is None else f"{self._score_attribute} {format_number(score)}"
                if latest or best:
                    yield ", ".join(filter(None, (latest, best)))
                return
        except (FormatError, MetricsError):
            return  # a display is no place to complain: whoever stores or ranks them does
        numbers = [
            (key, value)
            for key, value in flatten(metrics).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        for key, value in numbers[:_SHOWN_METRICS]:
            yield f"{key} {format_number(value)}"


def format_number(value: float) -> str:
    """A number as a person compares it: four significant digits, whole numbers whole."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def format_bytes(num_bytes: float) -> str:
    """`1.5 GB`: decimal units, as disks and networks count."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.3g} {_UNITS[unit]}"
