"""Says so where checkpoints are to be ranked by a metric that reports do not carry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from holdfast.checks import nearest
from holdfast.metrics import decode_metrics, flatten, score_of

if TYPE_CHECKING:
    from holdfast.records import CommittedCheckpoint

_SHOWN_NAMES = 20
# What frameworks put before a metric's name to say what it was measured on.
_MEASURED_ON = re.compile(r"^(train|training|val|valid|validation|eval|test)[_/-]")


class ScoreWatch:
    """Looks at the scores of committed checkpoints.

    Args:
        attribute: The metric that ranks them; None where time does.
        kept: What there is of the run already.
        may_come: Whether a validation may bring it yet, which tells of it where it does not.
        tell: Takes a message for a person.
    """

    def __init__(
        self,
        attribute: str | None,
        kept: Iterable[CommittedCheckpoint],
        *,
        may_come: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._attribute = attribute
        self._tell = tell
        self._has_told = may_come
        self._num_missing = 0
        self._was_there = may_come or (
            attribute is not None
            and any(score_of(decode_metrics(each.metrics), attribute) is not None for each in kept)
        )

    def score_of(self, checkpoint: CommittedCheckpoint, metrics: bytes) -> float | None:
        """What ranks it; the first time that there is nothing of that name a message says what there is."""
        if self._attribute is None:
            return None
        found = decode_metrics(metrics)
        score, flat = score_of(found, self._attribute), flatten(found)
        if self._attribute in flat:
            self._was_there = True
            return score
        self._num_missing += 1
        if not self._has_told and not self._was_there:
            self._has_told = True
            names = ", ".join(list(flat)[:_SHOWN_NAMES]) + (", …" if len(flat) > _SHOWN_NAMES else "")
            self._tell(
                f"{checkpoint.name} was reported without the metric {self._attribute!r} (CheckpointConfig.checkpoint_score_attribute), so it "
                f"ranks below all that have it; its metrics: {names or 'none'}{self._hint(flat)}"
            )
        return score

    def close(self) -> None:
        """The run is over: whether any checkpoint had it is known now."""
        if self._num_missing and not self._was_there:
            number = f"none of {self._num_missing} checkpoints" if self._num_missing > 1 else "no checkpoint"
            self._tell(f"{number} had the metric {self._attribute!r}, so the newest were kept, and not the best")

    def _hint(self, names: Iterable[str]) -> str:
        near = nearest(self._attribute, names)
        # "val_loss" is no slip for "loss" or "train_loss": it is measured more seldom, and may come yet.
        if near is not None and _MEASURED_ON.sub("", near) != _MEASURED_ON.sub("", self._attribute or ""):
            return f"; did you mean {near!r}?"
        return "; where it is measured more seldom this is as it should be"
