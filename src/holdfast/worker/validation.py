"""What runs in the process of a validation: the user's function, on one committed checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cloudpickle

from holdfast.errors import MetricsError
from holdfast.metrics import encode_metrics
from holdfast.worker import context
from holdfast.worker.backend import BackendConfig


def pack_validation(function: bytes, arguments: bytes) -> bytes:
    """A job's payload that validates the job's checkpoint.

    Args:
        function: As `pack` packed it.
        arguments: cloudpickle of a dict of keyword arguments.
    """
    payload: bytes = cloudpickle.dumps((_validate, {"function": function, "arguments": arguments}, BackendConfig()))
    return payload


def unpack_metrics(value: bytes | None) -> bytes:
    """What the validation found, as stored JSON, from the value that its process returned.

    Raises:
        MetricsError: It returned nothing.
    """
    found = cloudpickle.loads(value) if value is not None else None
    if not isinstance(found, bytes):
        raise MetricsError("the validation function returned no metrics")
    return found


def _validate(config: dict[str, bytes]) -> bytes:
    checkpoint = context.get_checkpoint()
    # This is no worker: there is no report to make and no rank to meet.
    context.leave()
    function = cloudpickle.loads(config["function"])[0]
    metrics: Any = function(checkpoint, **cloudpickle.loads(config["arguments"]))
    if not isinstance(metrics, Mapping):
        raise MetricsError(
            f"the validation function returned {type(metrics).__name__}; it must return a dict of metrics, {{}} for none"
        )
    return encode_metrics(metrics)
