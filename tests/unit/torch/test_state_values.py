"""Plain values come back as they were, types included."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError, StateError
from holdfast.torch.state.values import decode, encode, tensor_names

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.complex_numbers(allow_nan=False)
)  # fmt: skip
KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(KEYS, inner), st.lists(inner).map(deque)
    ),
    max_leaves=20,
)


def through_json(value):
    tensors: dict[str, torch.Tensor] = {}

    def take(name, tensor):
        tensors[name] = tensor
        return name

    node = json.loads(json.dumps(encode(value, "value", take)))
    assert sorted(tensor_names(node)) == sorted(tensors)
    return decode(node, "value", tensors.__getitem__)


@given(VALUES)
def test_values_come_back_with_their_types(value):
    back = through_json(value)
    assert back == value
    assert repr(back) == repr(value)  # True is not 1, (1,) is not [1]


@pytest.mark.parametrize(
    "value",
    [
        {1, 2}, frozenset("ab"), Counter("aab"), OrderedDict(b=1, a=2), torch.bfloat16, torch.device("cuda:1"),
        {"$tuple": [1]}, {"$x": 1, "$y": 2}, [math.inf, -math.inf], random.getstate(), {(1, 2): {"a": b"\xff"}},
    ],
)  # fmt: skip
def test_what_json_has_no_form_for(value):
    back = through_json(value)
    assert back == value
    assert type(back) is type(value)


def test_nan_numpy_and_subclasses():
    assert math.isnan(through_json(float("nan")))
    assert through_json(np.float32(1.5)) == 1.5
    assert through_json(np.int64(3)) == 3
    state = np.random.get_state()
    back = through_json(state)
    assert back[0] == state[0]
    assert np.array_equal(back[1], state[1])
    assert back[1].dtype == state[1].dtype


@pytest.mark.parametrize("value", [object(), lambda: 1, np.array(["x"]), {torch.ones(1): 1}, [1, {2: open}]])
def test_anything_else_is_refused_by_its_place(value):
    with pytest.raises(StateError, match="'outer"):
        encode(value, "outer", lambda name, _: name)


def test_a_tag_of_a_later_version_is_an_error():
    with pytest.raises(FormatError, match=r"\$quaternion"):
        decode({"$quaternion": [1, 2, 3, 4]}, "value", lambda _: torch.ones(1))
