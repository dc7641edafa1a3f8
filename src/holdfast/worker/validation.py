"""What runs in the process of a validation: the user's function, on one committed checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cloudpickle

from holdfast.config import ValidationConfig, ValidationTaskConfig
from holdfast.errors import MetricsError, SerializationError
from holdfast.metrics import encode_metrics
from holdfast.secrecy import private_channel
from holdfast.worker import context, protocol, script
from holdfast.worker.backend import BackendConfig
from holdfast.worker.shipping import pack


def pack_function(config: ValidationConfig) -> bytes:
    """What validates checkpoints, as cloudpickle.

    Raises:
        SerializationError: It cannot travel to another process.
    """
    try:
        return pack(config.fn, None, BackendConfig())
    except SerializationError as error:
        text = str(error).replace("training function", "validation function")
        text = text.replace("train_loop_config", "ValidationTaskConfig(fn_kwargs=...)")
        raise SerializationError(f"ValidationConfig.fn: {text}") from error


def pack_defaults(config: ValidationConfig) -> protocol.ValidationTask:
    """How a checkpoint is validated where its report says nothing of it.

    Raises:
        SerializationError: An argument cannot travel to another process.
    """
    task = config.task_config or ValidationTaskConfig()
    return protocol.ValidationTask(
        pack_arguments(task, "ValidationConfig.task_config") or pack_nothing(), task.timeout_s
    )


def pack_nothing() -> bytes:
    """No arguments."""
    return bytes(cloudpickle.dumps({}))


def pack_arguments(task: ValidationTaskConfig, where: str) -> bytes | None:
    """A task's arguments as cloudpickle; None where it has none of its own.

    Raises:
        SerializationError: One cannot travel to another process.
    """
    if task.fn_kwargs is None:
        return None
    with private_channel():
        for name, value in task.fn_kwargs.items():
            try:
                cloudpickle.dumps(value)
            except Exception as error:
                raise SerializationError(f"{where}: fn_kwargs[{name!r}] cannot be pickled: {error}") from error
        return bytes(cloudpickle.dumps(dict(task.fn_kwargs)))


def pack_validation(function: bytes, arguments: bytes, *, trusted: bool) -> bytes:
    """A job's payload that validates the job's checkpoint.

    Args:
        function: As `pack` packed it.
        arguments: cloudpickle of a dict of keyword arguments.
        trusted: This driver has just written the checkpoint; else its bytes are compared when they are read.
    """
    config = {"function": function, "arguments": arguments, "trusted": trusted}
    payload: bytes = cloudpickle.dumps((_validate, config, BackendConfig()))
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


def _validate(config: dict[str, Any]) -> bytes:
    checkpoint = context.get_checkpoint()
    assert checkpoint is not None
    checkpoint._verified = config["trusted"]
    # This is no worker: there is no report to make and no rank to meet.
    context.leave()
    script.stand_for(config["function"])
    function = cloudpickle.loads(config["function"])[0]
    metrics: Any = function(checkpoint, **cloudpickle.loads(config["arguments"]))
    if not isinstance(metrics, Mapping):
        raise MetricsError(
            f"the validation function returned {type(metrics).__name__}; it must return a dict of metrics, {{}} for none"
        )
    return encode_metrics(metrics)
