"""Which of the metrics that Transformers has logged belong to the step that is saved."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerState

# What `Trainer.evaluate` puts before the names of its metrics.
_EVALUATED = "eval_"


def metrics_of(state: TrainerState) -> dict[str, Any]:
    """The metrics of the step that training is at.

    At one step Transformers logs first, evaluates then, and saves last. So what was logged at this step is in the history by now; what is
    there of earlier steps is of other weights, and is left out. Only an evaluation may be older: it takes long, and is what checkpoints
    are ranked by.

    Returns:
        `step` and `epoch`; what was logged at that step (`loss`, …); of the newest evaluation what it found (`eval_loss`, …), also of
        several data sets, with the step that it is of as `eval_step`.
    """
    step = state.global_step
    evaluated = next((entry["step"] for entry in reversed(state.log_history) if _is_evaluation(entry)), None)
    oldest = step if evaluated is None else min(step, evaluated)
    metrics: dict[str, Any] = {"step": step, "epoch": state.epoch}
    if evaluated is not None:
        metrics["eval_step"] = evaluated
    # From the end: a long training has a long history, and what counts is at its end.
    for entry in itertools.takewhile(lambda entry: entry["step"] >= oldest, reversed(state.log_history)):
        for name, value in entry.items():
            if entry["step"] == step or (entry["step"] == evaluated and name.startswith(_EVALUATED)):
                metrics.setdefault(name, value)
    return metrics


def _is_evaluation(entry: dict[str, Any]) -> bool:
    return any(name.startswith(_EVALUATED) for name in entry)
