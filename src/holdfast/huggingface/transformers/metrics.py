"""Which of the metrics that Transformers has logged belong to the step that is reported."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerState


def metrics_of(state: TrainerState) -> dict[str, Any]:
    """The metrics of the step that training is at.

    At one step Transformers logs first, evaluates then, and saves last. So what was logged and found at this step is in the history by now.
    What is there of earlier steps is of other weights, which it must not rank, and is left out.

    Returns:
        `step` and `epoch`; what was logged at that step (`loss`, …), and found by its evaluations (`eval_loss`, …).
    """
    metrics: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch}
    # From the end: a long training has a long history, and what counts is at its end.
    for entry in itertools.takewhile(lambda entry: entry["step"] == state.global_step, reversed(state.log_history)):
        for name, value in entry.items():
            metrics.setdefault(name, value)
    return metrics
