from __future__ import annotations

import math

from holdfast.metrics import flatten
from holdfast.tracking.entry import Entry, parameters_of, scalars_of


def test_nested_metrics_are_flat_and_what_has_no_place_on_an_axis_is_left_out():
    reported = {"a": {"b": 1}, "ok": True, "note": "x", "list": [1], "none": None, "": 2}
    entry = Entry(3, scalars_of(flatten(reported)))
    assert entry.metrics == {"a/b": 1, "ok": True, "note": "x", "_": 2}
    assert entry.numbers == {"a/b": 1.0, "ok": 1.0, "_": 2.0}


def test_what_is_not_finite_stays_so():
    numbers = Entry(1, scalars_of({"nan": math.nan, "up": math.inf, "down": -math.inf})).numbers
    assert math.isnan(numbers["nan"])
    assert (numbers["up"], numbers["down"]) == (math.inf, -math.inf)


class Unshowable:
    def __repr__(self):
        raise RuntimeError("not here")

    __str__ = __repr__


def test_hyperparameters_are_numbers_and_short_texts():
    parameters = parameters_of({"lr": 0.1, "net": {"layers": [1, 2]}, 3: None, "odd": Unshowable(), "big": "x" * 9})
    odd = parameters.pop("odd")
    assert parameters == {"lr": 0.1, "net/layers": "[1, 2]", "3": "None", "big": "x" * 9}
    assert "Unshowable" in str(odd)
    assert len(str(parameters_of({"many": list(range(10_000))})["many"])) < 1000
    assert parameters_of(None) == {}


def test_hyperparameters_hold_nothing_that_a_file_or_a_database_refuses():
    cyclic = {}
    cyclic["again"] = cyclic
    parameters = parameters_of(
        {
            "": 1,
            "\ud800": "\udfff and \0",
            "nan": math.nan,
            "up": math.inf,
            "huge": 10**400,
            "endless": 10**5000,
            "cyclic": cyclic,
            "wide": 2**63,
            Unshowable(): 1,
        }
    )
    assert parameters.pop("cyclic").startswith("{'again': ")
    assert "cannot be shown" in parameters.pop("endless")
    (odd,) = [name for name in parameters if "Unshowable" in name]
    del parameters[odd]
    assert parameters.pop("huge").startswith("1000")
    assert parameters == {"_": 1, "?": "? and \ufffd", "nan": "nan", "up": "inf", "wide": 2**63}
