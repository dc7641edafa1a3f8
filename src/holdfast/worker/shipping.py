"""Packs the training function for its journey, and says what is to blame when it cannot travel."""

from __future__ import annotations

import importlib
import inspect
import io
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, ClassVar

import cloudpickle

from holdfast.checkpoint import Checkpoint
from holdfast.errors import SerializationError
from holdfast.secrecy import private_channel
from holdfast.stores import Store, open_store
from holdfast.worker import script
from holdfast.worker.backend import BackendConfig


def pack(function: Callable[..., Any], config: dict[str, Any] | None, backend: BackendConfig) -> bytes:
    """What a worker runs, as cloudpickle.

    Raises:
        SerializationError: Something in it cannot be pickled; the text names the variable.
    """
    packed = io.BytesIO()
    try:
        with private_channel():
            _Pickler(packed).dump((function, config, backend))
    except Exception as error:
        raise SerializationError(_blame(function, config, error)) from error
    return packed.getvalue()


@dataclass(frozen=True)
class Storage:
    """Where a job's runs lie.

    Attributes:
        root: Where all of them do.
        filesystem: The file system object that the user gave, to be given out again; None where a path or URL was enough.
    """

    root: Store
    filesystem: Any = None


def pack_storage(root: Store, filesystem: Any) -> bytes:
    """The storage for a worker, with its credentials.

    Raises:
        SerializationError: The file system object cannot be pickled.
    """
    try:
        with private_channel():
            data: bytes = cloudpickle.dumps(Storage(root, filesystem))
    except Exception as error:
        kind = type(filesystem)
        raise SerializationError(
            f"RunConfig.storage_filesystem ({kind.__module__}.{kind.__qualname__}) cannot be sent to the workers: {type(error).__name__}: "
            f"{error}. Define its class in a module that they can import, or give a URL and storage_options"
        ) from error
    return data


def pack_checkpoint(checkpoint: Checkpoint) -> bytes:
    """A checkpoint of somewhere else for a worker, with its credentials.

    Raises:
        SerializationError: Its file system object cannot be pickled.
    """
    try:
        with private_channel():
            data: bytes = cloudpickle.dumps(checkpoint)
    except Exception as error:
        raise SerializationError(
            f"the file system of {checkpoint!r} cannot be sent to the workers: {type(error).__name__}: {error}. Define its class in a "
            "module that they can import, or give a URL and storage_options"
        ) from error
    return data


def unpack_checkpoint(data: bytes) -> Checkpoint:
    """What was packed."""
    checkpoint: Checkpoint = cloudpickle.loads(data)
    return checkpoint


def unpack_storage(data: bytes, url: str) -> Storage:
    """What was packed; where nothing was, what a URL says."""
    storage: Storage = cloudpickle.loads(data) if data else Storage(open_store(url))
    return storage


def _reduce_code(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _make_code, (make, arguments, code.co_filename)


def _make_code(make: Callable[..., CodeType], arguments: tuple[Any, ...], file_name: str) -> CodeType:
    return make(*arguments).replace(co_filename=file_name)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # has no types
    """Keeps the files' names and the places of what travels by value, and knows every module.

    Newer cloudpickles (seen with 3.1.3) replace the names, so that the same cell of two notebooks gives the same bytes; a worker's
    traceback would then show neither where its lines stand nor what they say.
    """

    dispatch_table: ClassVar[Mapping[type, Callable[..., Any]]] = ChainMap(
        {CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table
    )

    def reducer_override(self, value: Any) -> Any:
        """Sends a module of a class of its own by its name.

        cloudpickle does so for plain modules only. `torch.ops` is none, and it is taken along by every function that knows `torch` and
        says `.ops` of anything.
        """
        if isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value and type(value) is not ModuleType:
            return importlib.import_module, (value.__name__,)
        reduced = script.by_value(value) or super().reducer_override(value)
        return script.in_its_place(value, reduced) if isinstance(reduced, tuple) else reduced


def _blame(function: Callable[..., Any], config: dict[str, Any] | None, error: Exception) -> str:
    name = getattr(function, "__qualname__", repr(function))
    culprits = [
        f"{where} ({type(value).__module__}.{type(value).__qualname__})"
        for where, value in _reachable(function, config)
        if not _travels(value)
    ]
    what = "; to blame: " + ", ".join(culprits) if culprits else ""
    return (
        f"the training function {name!r} cannot be sent to the workers: {type(error).__name__}: {error}{what}. "
        "Create such objects inside the function, or pass what they are made from by train_loop_config"
    )


def _reachable(function: Callable[..., Any], config: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """What the pickle of a function takes along by value, each under the name a user knows it by."""
    for key, value in (config or {}).items():
        yield f"train_loop_config[{key!r}]", value
    bound = getattr(function, "__self__", None)
    if bound is not None and not inspect.ismodule(bound):
        for key, value in getattr(bound, "__dict__", {}).items():
            yield f"attribute self.{key}", value
    plain = inspect.unwrap(getattr(function, "func", function))
    if not inspect.isroutine(plain):
        return
    try:
        variables = inspect.getclosurevars(plain)
    except (TypeError, ValueError):
        return
    for key, value in variables.nonlocals.items():
        yield f"variable {key!r} of the enclosing function", value
    for key, value in variables.globals.items():
        yield f"global variable {key!r}", value
    for parameter in inspect.signature(plain).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            yield f"default of parameter {parameter.name!r}", parameter.default


def _travels(value: object) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - any failure means no
        return False
    return True
