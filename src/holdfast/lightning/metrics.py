"""The metrics that a report carries: those of the weights that go with them."""

from __future__ import annotations

from typing import Any

from holdfast.lightning.due import place_of


class CurrentMetrics:
    """Tells which of a trainer's metrics were set where training is now.

    `trainer.callback_metrics` keeps what was ever logged: after a few batches more what a validation found, and the means over the epoch
    before, are of older weights. Beside newer ones they would rank a checkpoint that they say nothing of.

    Lightning sets a metric by a new tensor, and hands it out as another object at every look: the memory behind it tells. So a metric
    that lies elsewhere than at the last look was set since then.
    """

    def __init__(self) -> None:
        # By name the value, what marks it, and the place at which it was new. The value is held: its memory is given to no other.
        self._seen: dict[str, tuple[Any, object, int]] = {}

    def look(self, trainer: Any) -> dict[str, Any]:
        """Those of this place. To be called wherever metrics have been set that belong to it, whether they are needed or not."""
        place = place_of(trainer)
        self._look(trainer, place)
        return {name: value for name, (value, _, at) in self._seen.items() if at == place}

    def look_back(self, trainer: Any) -> None:
        """To be called before a batch that is counted and not trained on yet: what is new belongs to the place before it."""
        self._look(trainer, place_of(trainer) - 1)

    def _look(self, trainer: Any, place: int) -> None:
        for name, value in trainer.callback_metrics.items():
            mark = _mark(value)
            if name not in self._seen or self._seen[name][1] != mark:
                self._seen[name] = (value, mark, place)


def _mark(value: Any) -> object:
    """What changes where a value is set: its memory, and how often that was written to."""
    # What is no tensor, or one on top of others, has no memory of its own.
    memory = value.data_ptr() if hasattr(value, "data_ptr") else 0
    if not memory:
        return id(value)
    return memory, None if value.is_inference() else value._version
