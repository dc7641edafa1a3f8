"""Metrics are stored as they were at the call: strict JSON, nothing lost, or an error that names the key."""

from __future__ import annotations

import enum
import json
import math
import time
from collections import OrderedDict, namedtuple
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError, MetricsError
from holdfast.metrics import choose_metrics, decode_metrics, encode_metrics, flatten, score_of

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)


def is_tag(value: Any) -> bool:
    if isinstance(value, dict):
        return set(value) == {"$float"} or any(is_tag(inner) for inner in value.values())
    return isinstance(value, list) and any(is_tag(inner) for inner in value)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(st.dictionaries(texts, values).filter(lambda metrics: not is_tag(metrics)))
def test_what_is_stored_comes_back(metrics: dict[str, Any]) -> None:
    assert same(decode_metrics(encode_metrics(metrics)), metrics)


@given(st.dictionaries(texts, values).filter(lambda metrics: not is_tag(metrics)))
def test_stored_metrics_are_strict_json(metrics: dict[str, Any]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(encode_metrics(metrics), parse_constant=refuse)


@given(st.recursive(scalars | st.binary() | st.sets(st.integers()) | st.complex_numbers() | st.integers(), st.lists))
def test_any_value_is_stored_or_refused_with_its_key(value: Any) -> None:
    try:
        encode_metrics({"outer": {"inner": value}})
    except MetricsError as error:
        assert "'outer/inner" in str(error)  # noqa: PT017 - both outcomes are right, each in its way


def test_later_changes_do_not_reach_the_copy() -> None:
    metrics = {"loss": 1.0, "history": [1, 2]}
    stored = encode_metrics(metrics)
    metrics["loss"] = 9.0
    metrics["history"].append(3)
    assert decode_metrics(stored) == {"loss": 1.0, "history": [1, 2]}


def test_raw_from_a_record_is_decoded() -> None:
    assert decode_metrics(msgspec.Raw(b'{"a": {"$float": "-inf"}}')) == {"a": -math.inf}
    assert math.isnan(decode_metrics(b'{"a": [{"\\u0024float": "nan"}]}')["a"][0])


def test_tags_of_a_newer_format_stay_what_they_are() -> None:
    assert decode_metrics(b'{"a": {"$float": "0x1p3"}, "b": {"$float": 1}}') == {
        "a": {"$float": "0x1p3"},
        "b": {"$float": 1},
    }


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b'{"a": NaN}', b"[" * 100_000])
def test_damaged_metrics_are_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError, match="stored metrics"):
        decode_metrics(data)


class Colour(str, enum.Enum):  # noqa: UP042 - StrEnum is another class, with another __str__
    RED = "red"

    def __str__(self) -> str:
        return "not this"


class Level(enum.IntEnum):
    HIGH = 3


class Plain(enum.Enum):
    A = 1


class Own(float):
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Own(1.5), 1.5),
        (Own("nan"), {"$float": "nan"}),
        (math.inf, {"$float": "inf"}),
        (-math.inf, {"$float": "-inf"}),
        (Point(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": (1,)}), {"a": [1]}),
        ({Colour.RED: 1}, {"red": 1}),
        ({"$float": 1, "other": 2}, {"$float": 1, "other": 2}),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), {"$float": "nan"}),
        (np.float16(2), 2.0),
        (np.longdouble(2.5), 2.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(4), 4),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([1.0, np.inf]), [1.0, {"$float": "inf"}]),
        (np.array([], dtype=np.int64), []),
        (np.array([1, "a", None], dtype=object), [1, "a", None]),
        ([np.float32(1)], [1.0]),
    ],
)
def test_values_are_converted(value: Any, stored: Any) -> None:
    assert json.loads(encode_metrics({"k": value})) == {"k": stored}


def test_one_array_twice_is_no_cycle() -> None:
    shared = [1]
    assert decode_metrics(encode_metrics({"a": shared, "b": shared, "c": [shared, shared]}))["c"] == [[1], [1]]


class Metric:
    def compute(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("value", "key", "remedy"),
    [
        ({1, 2}, "'k'", "sorted"),
        (b"bytes", "'k'", "decode"),
        (object(), "'k'", "number"),
        (Metric(), "'k'", ".compute()"),
        (Plain.A, "'k'", ".value"),
        (1j, "'k'", "number"),
        (2**64, "'k'", "64 bits"),
        (-(2**63) - 1, "'k'", "64 bits"),
        ([0, {"deep": [{3}]}], "'k[1]/deep[0]'", "sorted"),
        ({3: 1}, "'k'", "str(key)"),
        ({None: 1}, "'k'", "str(key)"),
        ({"$float": "nan"}, "'k'", "another key"),
        ("\ud800", "'k'", "surrogate"),
        ({"\udfff": 1}, r"'k/\udfff'", "surrogate"),
        (np.datetime64("2020"), "'k'", "datetime64"),
        (np.complex64(1), "'k'", "complex64"),
        (np.array([b"x"]), "'k'", "numbers or text"),
        (np.array([{1}], dtype=object), "'k[0]'", "sorted"),
    ],
)
def test_what_is_no_json_value_is_refused_by_its_key(value: Any, key: str, remedy: str) -> None:
    with pytest.raises(MetricsError) as caught:
        encode_metrics({"good": 1, "k": value})
    assert key in str(caught.value)
    assert remedy in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("metrics", [None, 3, [("a", 1)], "text", {"$float": 1.0}, {1: 2}])
def test_metrics_that_are_no_dict_of_names_are_refused(metrics: Any) -> None:
    with pytest.raises(MetricsError, match="metrics"):
        encode_metrics(metrics)


def test_a_cycle_is_named_and_not_followed() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = [loop]
    with pytest.raises(MetricsError, match=r"'k/self\[0\]' contains itself"):
        encode_metrics({"k": loop})
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(MetricsError, match="nested more than 100"):
        encode_metrics({"k": deep})


def test_tensors() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
    tensors = {
        "half": torch.tensor(3.5, dtype=torch.bfloat16),
        "grad": torch.tensor(1.0, requires_grad=True),
        "int": torch.tensor(3),
        "bool": torch.tensor(True),
        "nan": torch.tensor(float("nan")),
        "parameter": torch.nn.Parameter(torch.tensor(2.0)),
        "one": torch.tensor([2]),
        "wrapped": torch.tensor([[1.5]]),
    }
    stored = decode_metrics(encode_metrics(tensors))
    assert math.isnan(stored.pop("nan"))
    assert stored == {"half": 3.5, "grad": 1.0, "int": 3, "bool": True, "parameter": 2.0, "one": 2, "wrapped": 1.5}
    for bad, hint in (
        (torch.zeros(2, 3), r"'k' is torch.Tensor of shape \(2, 3\).*\.item\(\).*\.tolist\(\)"),
        (torch.zeros((), device="meta"), "'k' is torch.Tensor, which cannot be read"),
        (torch.tensor(1j), "complex"),
    ):
        with pytest.raises(MetricsError, match=hint):
            encode_metrics({"k": bad})


class EagerTensor:
    """What TensorFlow and JAX hand out, by the few names that are used of it."""

    dtype = "float32"

    def __init__(self, value: float, shape: tuple[int, ...] = ()) -> None:
        self.shape = shape
        self._value = value

    def numpy(self) -> np.float32:
        return np.float32(self._value)

    def item(self) -> float:
        return self._value


@pytest.mark.parametrize("module", ["tensorflow.python.framework.ops", "jaxlib._jax"])
def test_tensors_of_other_libraries(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EagerTensor, "__module__", module)
    assert decode_metrics(encode_metrics({"k": EagerTensor(0.5)})) == {"k": 0.5}
    with pytest.raises(MetricsError, match=r"shape \(2,\)"):
        encode_metrics({"k": EagerTensor(0.5, (2,))})


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (None, {"loss": 1, "error": 2}),
        ("error", {"error": 2}),
        (["error", "loss"], {"error": 2, "loss": 1}),
        ({"first": "loss", "again": "loss"}, {"first": 1, "again": 1}),
        ([], {}),
    ],
)
def test_chosen_metrics(wanted: Any, chosen: dict[str, int]) -> None:
    found = choose_metrics({"loss": 1, "error": 2}, wanted)
    assert list(found.items()) == list(chosen.items())


def test_a_chosen_metric_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(MetricsError, match=r"'accuracy'.*'loss', 'error'"):
        choose_metrics({"loss": 1, "error": 2}, {"score": "accuracy"})
    with pytest.raises(MetricsError, match="none at all"):
        choose_metrics({}, "loss")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {"a/b": 1, "a/c/d": [2], "e": None, "f": {}}
    assert flatten({"a": {"b": 1}, "a/b": 2}) == {"a/b": 2}
    assert flatten({"a/b": 2, "a": {"b": 1}}) == {"a/b": 2}


@pytest.mark.parametrize(
    ("metrics", "attribute", "score"),
    [
        ({"a": 1}, "a", 1.0),
        ({"a": math.inf}, "a", math.inf),
        ({"a": math.nan}, "a", None),
        ({"a": None}, "a", None),
        ({}, "a", None),
        ({"a": {"b": 2}}, "a/b", 2.0),
        ({"a/b": 1, "a": {"b": 2}}, "a/b", 1.0),
        ({"a": {"b/c": 3}}, "a/b/c", 3.0),
        ({"a/b": {"c": 4}}, "a/b/c", 4.0),
        ({"a": 1}, "a/b", None),
    ],
)
def test_score(metrics: dict[str, Any], attribute: str, score: float | None) -> None:
    assert score_of(metrics, attribute) == score


@pytest.mark.parametrize("value", [True, "0.5", [1], {"b": 1}])
def test_a_score_that_is_no_number_is_an_error(value: Any) -> None:
    with pytest.raises(MetricsError, match="score attribute 'a'"):
        score_of({"a": value}, "a")


def test_three_scalars_cost_microseconds() -> None:
    metrics = {"loss": 0.25, "epoch": 3, "lr": 1e-3}

    def batch() -> float:
        begin = time.perf_counter()
        for _ in range(1000):
            encode_metrics(metrics)
        return (time.perf_counter() - begin) / 1000

    # The bar is 3 µs; a busy machine gets a wide margin, an accidental slow path (10 times as much) does not.
    assert min(batch() for _ in range(20)) < 12e-6
