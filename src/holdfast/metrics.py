"""Metrics as they are stored: strict JSON, checked and copied when they are reported.

JSON has no NaN and no infinities, and a metric often is one; they are stored as `{"$float": "nan"}`,
`{"$float": "inf"}` and `{"$float": "-inf"}`, so that any JSON reader can read a run and nothing turns into null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, isnan
from typing import Any, Final

import msgspec

from holdfast.errors import FormatError, MetricsError

_TAG: Final = "$float"
_NON_FINITE: Final = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1
_MAX_DEPTH: Final = 100
"""Far beyond any metrics, and far below where the interpreter's own limit ends the worker."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode_metrics(metrics: Mapping[str, Any]) -> bytes:
    """The metrics as stored JSON: a copy that later changes of `metrics` do not reach.

    Takes None, bool, int, float, str, lists, tuples and dicts of them, NumPy scalars and arrays, and tensors of one element of
    torch, JAX and TensorFlow. Tuples come back as lists, members of str, int and float enums as their values.

    Raises:
        MetricsError: Something else is among them; the text names its key and what to do.
    """
    # Nearly every report is a flat dict of plain numbers, and a training loop waits for this line.
    if type(metrics) is dict and not (len(metrics) == 1 and _TAG in metrics):
        for key, value in metrics.items():
            kind = type(value)
            if type(key) is not str:
                break
            if kind is float:
                if not isfinite(value):
                    break
            elif kind is int:
                if not _INT_MIN <= value <= _INT_MAX:
                    break
            elif not (kind is str or kind is bool or value is None):
                break
        else:
            try:
                return _encode(metrics)
            except UnicodeEncodeError:
                pass  # refused again below, by code that knows the key
    if not isinstance(metrics, Mapping):
        raise MetricsError(f"the metrics of a report must be a dict of names to values, not {_name(metrics)}")
    return _encode(_copy_mapping(metrics, "", set()))


def choose_metrics(values: Mapping[str, Any], wanted: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, Any]:
    """Of what a framework measured, what a callback of ours was asked to report.

    Args:
        wanted: None for all, one name, a list of names, or a dict of the names to report to those that the framework uses.

    Raises:
        MetricsError: One is not there; the text names those that are.
    """
    if wanted is None:
        return dict(values)
    names = {wanted: wanted} if isinstance(wanted, str) else wanted
    pairs = names.items() if isinstance(names, Mapping) else [(name, name) for name in names]
    for _, name in pairs:
        if name not in values:
            there = ", ".join(map(repr, values)) or "none at all"
            raise MetricsError(f"the metric {name!r} was to be reported, and is not there; there are: {there}")
    return {ours: values[name] for ours, name in pairs}


def merge_metrics(metrics: bytes | msgspec.Raw, more: bytes | msgspec.Raw) -> msgspec.Raw:
    """Stored metrics with others added, in nested ones too; of two of one name those of `more` hold.

    Raises:
        FormatError: One is no stored metrics.
    """
    return msgspec.Raw(encode_metrics(_merged(decode_metrics(metrics), decode_metrics(more))))


def _merged(metrics: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(metrics)
    for key, value in more.items():
        known = merged.get(key)
        merged[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def decode_metrics(data: bytes | msgspec.Raw) -> dict[str, Any]:
    """The metrics that `encode_metrics` stored.

    Raises:
        FormatError: The bytes are no JSON object.
    """
    try:
        found = _decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError(f"stored metrics are no JSON: {error}; they begin {bytes(data)[:60]!r}") from error
    if not isinstance(found, dict):
        raise FormatError(f"stored metrics are no JSON object; they begin {bytes(data)[:60]!r}")
    raw = bytes(data)
    # Other writers may escape the dollar sign, so an escape too is reason enough to look.
    if b"$float" in raw or b"\\u" in raw:
        return {key: _revive(value) for key, value in found.items()}
    return found


def flatten(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Nested metrics by their path: `{"a": {"b": 1}}` becomes `{"a/b": 1}`.

    Lists stay values. A key that itself holds the path wins over the nested one.
    """
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping) and value:
            for sub, inner in flatten(value).items():
                if (path := f"{key}/{sub}") not in metrics:
                    flat[path] = inner
        else:
            flat[key] = value
    return flat


def score_of(metrics: Mapping[str, Any], attribute: str) -> float | None:
    """The number that ranks a checkpoint, or None where it is missing, None or NaN.

    Args:
        metrics: As `decode_metrics` gives them.
        attribute: A key, or the path of a nested one (`a/b`); a key that itself holds the slash comes first.

    Raises:
        MetricsError: The value is no number (also True and False, which would rank as 1 and 0).
    """
    value = next(_candidates(metrics, attribute), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MetricsError(
            f"the score attribute {attribute!r} is no number but {_name(value)} ({_brief(value)}); report a number under "
            "this key, or name another one in CheckpointConfig.checkpoint_score_attribute"
        )
    score = float(value)
    return None if isnan(score) else score


def _candidates(metrics: Mapping[str, Any], path: str) -> Iterator[Any]:
    if path in metrics:
        yield metrics[path]
    at = path.find("/")
    while at >= 0:
        inner = metrics.get(path[:at])
        if isinstance(inner, Mapping):
            yield from _candidates(inner, path[at + 1 :])
        at = path.find("/", at + 1)


def _revive(value: Any) -> Any:
    if type(value) is dict:
        if len(value) == 1 and isinstance(text := value.get(_TAG), str) and text in _NON_FINITE:
            return _NON_FINITE[text]
        return {key: _revive(inner) for key, inner in value.items()}
    if type(value) is list:
        return [_revive(inner) for inner in value]
    return value


def _copy_mapping(metrics: Mapping[Any, Any], path: str, above: set[int]) -> dict[str, Any]:
    _enter(metrics, path, above)
    if len(metrics) == 1 and _TAG in metrics:
        raise MetricsError(
            f"{_where(path)} is a dict with the single key {_TAG!r}, which is how NaN and infinities are stored; "
            "use another key"
        )
    copied: dict[str, Any] = {}
    for key, value in metrics.items():
        if not isinstance(key, str):
            raise MetricsError(
                f"{_where(path)} has the key {_brief(key)} ({_name(key)}); keys must be str: use str(key)"
            )
        inner = f"{path}/{key}" if path else str(key)
        copied[_text(key, inner, "the key")] = _copy(value, inner, above)
    above.discard(id(metrics))
    return copied


def _copy_list(values: list[Any] | tuple[Any, ...], path: str, above: set[int]) -> list[Any]:
    _enter(values, path, above)
    copied = [_copy(value, f"{path}[{index}]", above) for index, value in enumerate(values)]
    above.discard(id(values))
    return copied


def _enter(container: object, path: str, above: set[int]) -> None:
    if id(container) in above:
        raise MetricsError(f"{_where(path)} contains itself; report a copy without the cycle")
    if len(above) >= _MAX_DEPTH:
        raise MetricsError(f"{_where(path[:80])}… is nested more than {_MAX_DEPTH} levels deep; flatten it")
    above.add(id(container))


def _copy(value: Any, path: str, above: set[int]) -> Any:
    """One value as JSON types; `above` holds the ids of the containers around it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return _number(float.__float__(value))
    if isinstance(value, int):
        plain = int.__int__(value)
        if not _INT_MIN <= plain <= _INT_MAX:
            raise MetricsError(f"{_where(path)} is an int beyond 64 bits; report a float or a str")
        return plain
    if isinstance(value, str):
        return _text(value, path, "the text")
    if isinstance(value, Mapping):
        return _copy_mapping(value, path, above)
    if isinstance(value, list | tuple):
        return _copy_list(value, path, above)
    return _foreign(value, path, above)


def _foreign(value: Any, path: str, above: set[int]) -> Any:
    """A value of an array library, known by its module so that none is imported."""
    family = _family(value)
    if family is None:
        raise MetricsError(f"{_where(path)} is {_name(value)}, which is no JSON value; {_remedy(value)}")
    dtype_kind = getattr(getattr(value, "dtype", None), "kind", None)
    if family == "numpy" and dtype_kind not in ("b", "i", "u", "f", "U", "O", "V"):
        raise MetricsError(f"{_where(path)} is {_name(value)} of dtype {value.dtype}; report numbers or text")
    shape = tuple(getattr(value, "shape", ()))
    # One number, however it is wrapped, is one.
    num_dims = 0 if family != "numpy" and all(size == 1 for size in shape) else len(shape)
    if num_dims and family != "numpy":
        raise MetricsError(
            f"{_where(path)} is {_name(value)} of shape {tuple(value.shape)}; reduce it to one number with .mean().item(), "
            "or report its elements with .tolist()"
        )
    try:
        if num_dims:
            plain = value.tolist()
        else:
            plain = value.numpy().item() if family == "tensorflow" else value.item()
    except Exception as error:  # whatever the library says, the user needs the key
        raise MetricsError(f"{_where(path)} is {_name(value)}, which cannot be read: {error}") from error
    if _family(plain) is not None:
        # Extended precision and the small floats of accelerators have no Python type; what they hold fits a float.
        try:
            return _number(float(plain))
        except (TypeError, ValueError) as error:
            raise MetricsError(f"{_where(path)} is {_name(value)}, which is no JSON value; {_remedy(value)}") from error
    return _copy(plain, path, above)


def _family(value: object) -> str | None:
    for cls in type(value).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in ("numpy", "ml_dtypes") and hasattr(value, "dtype"):
            return "numpy"
        if root in ("torch", "jax", "jaxlib", "tensorflow") and hasattr(value, "dtype") and hasattr(value, "shape"):
            return root
    return None


def _number(value: float) -> Any:
    if isfinite(value):
        return value
    return {_TAG: "nan" if isnan(value) else "inf" if value > 0 else "-inf"}


def _text(value: str, path: str, what: str) -> str:
    plain = str.__str__(value)
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        raise MetricsError(
            f"{what} of {_where(path)} holds a lone surrogate at {error.start}, which no file can store; clean it with "
            ".encode(errors='replace').decode()"
        ) from error
    return plain


def _where(path: str) -> str:
    return f"the metric {path!r}" if path else "the metrics dict itself"


def _name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _remedy(value: object) -> str:
    if isinstance(value, set | frozenset):
        return "report sorted(...) of it"
    if isinstance(value, bytes | bytearray | memoryview):
        return "decode it to a str, or put it into the checkpoint's directory"
    if hasattr(value, "compute"):
        return "report the result of its .compute()"
    if hasattr(value, "tolist"):
        return "report its .tolist()"
    if hasattr(value, "value"):
        return "report its .value"
    return "report a number, a text, or a list or dict of them"
