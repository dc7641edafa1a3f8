"""The metrics that a report carries: those of the weights that go with them."""

from __future__ import annotations

from typing import Any

from holdfast.lightning.due import place_of


class CurrentMetrics:
    """Tells which of a trainer's metrics were set where training is now.

    `trainer.callback_metrics` keeps what was ever logged: after a few batches more what a validation found, and the means over the epoch
    before, are of older weights. Beside newer ones they would rank a checkpoint that they say nothing of.

    Lightning sets a metric by a new tensor. So one that is another object than at the last look was set since then.
    """

    def __init__(self) -> None:
        # By name the value, and the place at which it was new.
        self._seen: dict[str, tuple[object, int]] = {}

    def look(self, trainer: Any) -> dict[str, Any]:
        """Those of this place. To be called wherever metrics have been set that belong to it, whether they are needed or not."""
        place = place_of(trainer)
        for name, value in trainer.callback_metrics.items():
            if name not in self._seen or self._seen[name][0] is not value:
                self._seen[name] = (value, place)
        return {name: value for name, (value, at) in self._seen.items() if at == place}
