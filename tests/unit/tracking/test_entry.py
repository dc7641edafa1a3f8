from __future__ import annotations

import math

import pytest

from holdfast.tracking.entry import entry_of, parameters_of


def test_nested_metrics_are_flat_and_what_has_no_place_on_an_axis_is_left_out():
    entry = entry_of(3, {"a": {"b": 1}, "ok": True, "note": "x", "list": [1], "none": None}, "/run/checkpoint", None)
    assert (entry.step, entry.checkpoint) == (3, "/run/checkpoint")
    assert entry.metrics == {"a/b": 1, "ok": True, "note": "x"}
    assert entry.numbers == {"a/b": 1.0, "ok": 1.0}


def test_what_is_not_finite_stays_so():
    numbers = entry_of(1, {"nan": math.nan, "up": math.inf, "down": -math.inf}, None, None).numbers
    assert math.isnan(numbers["nan"])
    assert (numbers["up"], numbers["down"]) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("metrics", "step"),
    [({"at": {"step": 40}}, 40), ({"at": {"step": 40.9}}, 40), ({}, 7), ({"at": {"step": math.nan}}, 7)],
)
def test_a_named_metric_is_the_step_where_it_is_a_number(metrics, step):
    assert entry_of(7, metrics, None, "at/step").step == step


class Unshowable:
    def __repr__(self):
        raise RuntimeError("not here")


def test_hyperparameters_are_numbers_and_short_texts():
    parameters = parameters_of({"lr": 0.1, "net": {"layers": [1, 2]}, 3: None, "odd": Unshowable(), "big": "x" * 9})
    odd = parameters.pop("odd")
    assert parameters == {"lr": 0.1, "net/layers": "[1, 2]", "3": "None", "big": "x" * 9}
    assert "Unshowable" in str(odd)
    assert len(str(parameters_of({"many": list(range(10_000))})["many"])) < 1000
    assert parameters_of(None) == {}
