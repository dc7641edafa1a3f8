"""Which logged metrics belong to the saved step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from holdfast.huggingface.transformers.metrics import metrics_of


def metrics_at(step: int, *history: dict[str, Any]) -> dict[str, Any]:
    state: Any = SimpleNamespace(global_step=step, epoch=step / 10, log_history=list(history))
    return metrics_of(state)


def test_only_what_was_logged_at_the_step() -> None:
    found = metrics_at(4, {"step": 2, "loss": 0.5, "epoch": 0.2}, {"step": 4, "grad_norm": 1.0, "epoch": 0.4})
    assert found == {"step": 4, "epoch": 0.4, "grad_norm": 1.0}


def test_nothing_logged() -> None:
    assert metrics_at(4) == {"step": 4, "epoch": 0.4}


def test_no_evaluation_of_other_weights() -> None:
    found = metrics_at(6, {"step": 4, "eval_loss": 0.7, "epoch": 0.4}, {"step": 6, "loss": 0.4, "epoch": 0.6})
    assert found == {"step": 6, "epoch": 0.6, "loss": 0.4}


def test_an_evaluation_of_several_data_sets() -> None:
    found = metrics_at(
        4,
        {"step": 4, "loss": 0.5, "epoch": 0.4},
        {"step": 4, "eval_a_loss": 0.7, "epoch": 0.4},
        {"step": 4, "eval_b_loss": 0.8, "epoch": 0.4},
    )
    assert found == {"step": 4, "epoch": 0.4, "loss": 0.5, "eval_a_loss": 0.7, "eval_b_loss": 0.8}


def test_of_two_entries_of_one_step_the_later_counts() -> None:
    assert metrics_at(4, {"step": 4, "loss": 0.5}, {"step": 4, "loss": 0.3})["loss"] == 0.3
