from __future__ import annotations

import math

import pytest

from holdfast.tracking.axis import Axis


def test_without_a_metric_it_is_the_index_of_the_report():
    axis = Axis(None)
    assert [axis.step_of(attempt, report, {"step": 9}) for attempt, report in [(1, 1), (1, 2), (2, 3)]] == [1, 2, 3]


@pytest.mark.parametrize(("value", "step"), [(40, 40), (40.9, 40), (-1, -1)])
def test_a_metric_that_is_a_number_is_the_step(value, step):
    assert Axis("at/step").step_of(1, 7, {"at/step": value}) == step


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "40", None, [40], 2**63, 1e300])
def test_what_is_no_step_is_as_if_it_were_missing(value):
    axis = Axis("step")
    assert axis.step_of(1, 1, {"step": value}) is None
    axis.step_of(1, 2, {"step": 5})
    assert axis.step_of(1, 3, {"step": value}) == 5


def test_a_report_without_the_metric_is_at_the_last_step_of_its_own_attempt():
    axis = Axis("step")
    reports = [(1, {}), (1, {"step": 5}), (1, {}), (1, {"step": 6}), (2, {}), (2, {"step": 3}), (2, {})]
    steps = [axis.step_of(attempt, report, metrics) for report, (attempt, metrics) in enumerate(reports, 1)]
    assert steps == [None, 5, 5, 6, None, 3, 3]
