"""Plain values as JSON that comes back as it was: tuples, sets, bytes, NaN, dicts with numbers for keys.

A class that derives from one of them (a named tuple, a `defaultdict`) comes back as what it derives from.

What JSON has no form for is an object with one key that begins with `$`. Tensors inside are left to the caller: they
become `{"$tensor": name}`.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from holdfast.errors import FormatError, StateError

# Stores a tensor found in the values under a name of its own, and gives that name.
TakeTensor = Callable[[str, torch.Tensor], str]
GiveTensor = Callable[[str], torch.Tensor]

_SEQUENCES: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset", deque: "$deque"}
_MAPPINGS: dict[type, str] = {Counter: "$counter", OrderedDict: "$ordered"}
_SEQUENCE_OF = {tag: cls for cls, tag in _SEQUENCES.items()}
_MAPPING_OF = {tag: cls for cls, tag in _MAPPINGS.items()} | {"$dict": dict}


def encode(value: Any, where: str, take: TakeTensor) -> Any:
    """What `json` can write of a value.

    Args:
        where: The value's place in the state, for errors and for the names of tensors.
        take: Told of each tensor and array inside.

    Raises:
        StateError: It holds something that is neither plain nor a tensor.
    """
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"$float": repr(number)}
    if isinstance(value, torch.Tensor):
        return {"$tensor": take(where, value)}
    if isinstance(value, np.ndarray):
        return {"$array": take(where, _tensor_of(value, where))}
    if isinstance(value, list):
        return [encode(item, f"{where}/{number}", take) for number, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _encode_mapping(value, where, take)
    if (tag := next((tag for cls, tag in _SEQUENCES.items() if isinstance(value, cls)), None)) is not None:
        return {tag: [encode(item, f"{where}/{number}", take) for number, item in enumerate(value)]}
    return _encode_scalar(value, where)


def decode(node: Any, where: str, give: GiveTensor) -> Any:
    """The value of what `encode` made.

    Raises:
        FormatError: It is of a kind that this version does not know.
    """
    if isinstance(node, list):
        return [decode(item, where, give) for item in node]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node)) if len(node) == 1 else ""
    if not tag.startswith("$"):
        return {key: decode(item, where, give) for key, item in node.items()}
    data = node[tag]
    if tag in _SEQUENCE_OF:
        return _SEQUENCE_OF[tag](decode(item, where, give) for item in data)
    if tag in _MAPPING_OF:
        pairs = [(decode(key, where, give), decode(item, where, give)) for key, item in data]
        return _MAPPING_OF[tag](dict(pairs) if tag == "$counter" else pairs)
    match tag:
        case "$tensor":
            return give(data)
        case "$array":
            return give(data).numpy()
        case "$float":
            return float(data)
        case "$complex":
            return complex(*data)
        case "$bytes":
            return base64.b64decode(data)
        case "$dtype":
            return getattr(torch, data)
        case "$device":
            return torch.device(data)
    raise FormatError(f"the state's {where!r} holds {tag!r}, which this version of Holdfast does not know")


def tensor_names(node: Any) -> list[str]:
    """The names of all tensors inside what `encode` made."""
    found: list[str] = []
    todo = [node]
    while todo:
        at = todo.pop()
        if isinstance(at, list):
            todo.extend(at)
        elif isinstance(at, dict):
            name = at.get("$tensor", at.get("$array")) if len(at) == 1 else None
            if isinstance(name, str):
                found.append(name)
            else:
                todo.extend(at.values())
    return found


def _encode_mapping(value: Mapping[Any, Any], where: str, take: TakeTensor) -> Any:
    tag = next((tag for cls, tag in _MAPPINGS.items() if isinstance(value, cls)), None)
    if tag is None and all(isinstance(key, str) for key in value):
        plain = {key: encode(item, f"{where}/{key}", take) for key, item in value.items()}
        # An only key that looks like a tag would be read as one.
        if len(plain) != 1 or not next(iter(plain)).startswith("$"):
            return plain
    pairs = []
    for key, item in value.items():
        if isinstance(key, torch.Tensor | np.ndarray):
            raise StateError(f"save_state: {where!r} is a dict with a {type(key).__name__} for a key")
        pairs.append([encode(key, where, take), encode(item, f"{where}/{key}", take)])
    return {tag or "$dict": pairs}


def _encode_scalar(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        return encode(value.item(), where, lambda *_: "")
    if isinstance(value, int):  # of a class of its own: an IntEnum, say
        return int(value)
    if isinstance(value, complex):
        return {"$complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"$device": str(value)}
    raise StateError(
        f"save_state: {where!r} is of the class {type(value).__name__}, which cannot be stored; pass modules, optimizers, objects with "
        "state_dict() and load_state_dict(), tensors, arrays and plain values (numbers, texts, lists, dicts, …)"
    )


def _tensor_of(array: np.ndarray[Any, Any], where: str) -> torch.Tensor:
    try:
        return torch.from_numpy(array.copy(order="C"))
    except TypeError as error:
        raise StateError(f"save_state: {where!r} is an array of {array.dtype}, which no tensor can hold") from error
