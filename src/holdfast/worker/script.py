"""The user's script, in processes that do not run it: a `__main__` with what the training function reaches of it.

A worker is forked from another program, and a script needs no `if __name__ == "__main__"`, so nobody may run it again, as multiprocessing
does. What it defines travels by value with the function. Here that gets its place back, under which pickle looks for it: in
the worker, in the processes that the worker starts by multiprocessing, and, for what a checkpoint holds, in whichever reads it.
"""

from __future__ import annotations

import functools
import sys
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, Final, NewType, ParamSpec, TypeVarTuple

import cloudpickle

from holdfast.secrecy import may_carry_secrets

_NEW_TYPE: Final[Any] = NewType
_CACHED: Final[Any] = type(functools.lru_cache(lambda: None))
# A TypeVar, their kin, is known to cloudpickle.
_TYPE_PARAMETERS: Final[Any] = ParamSpec | TypeVarTuple
_OF_TYPE_PARAMETERS: Final = (
    *("bound", "covariant", "contravariant"),
    *(("infer_variance",) if sys.version_info >= (3, 12) else ()),
    *(("default",) if sys.version_info >= (3, 13) else ()),
)
_MAIN: Final = "__main__"
# What multiprocessing runs in a new process in place of the script.
_STAND_IN: Final = "holdfast.worker.stand_in"
# What functions see of the module they are in; the rest goes by the names that they use.
_OF_THE_MODULE: Final = ("__file__", "__package__", "__path__")

# Of the job that this process is part of, as `shipping.pack` packed it.
_payload = b""
_is_rebuilt = False


class _Name(str):
    """The stand-in's; wherever it is sent, what the script's names are rebuilt from goes along.

    multiprocessing pickles the name for each process that it starts by other means than a fork, and needs no file for that. The payload
    may hold secrets, and goes nowhere else.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (_payload if may_carry_secrets() else b"",)


def _arrived(payload: bytes) -> str:
    global _payload
    _payload = payload
    return _STAND_IN


def spec() -> ModuleSpec:
    """The `__spec__` of a `__main__`, from which multiprocessing takes what to run in its place."""
    return ModuleSpec(_Name(_STAND_IN), None)


class _Script(ModuleType):
    """The `__main__` of a worker."""

    def __repr__(self) -> str:
        return "<the script's __main__, as far as the training function reaches it>"

    @property
    def __spec__(self) -> ModuleSpec:  # type: ignore[override] # not among the names, by which functions of the script import
        return spec()


def stand_for(payload: bytes) -> None:
    """Makes this process's `__main__` the script's; what the script defines is in it once the payload is loaded."""
    global _payload
    _payload = payload
    sys.modules[_MAIN] = _Script(_MAIN)


def find(name: str) -> Any:
    """The `__getattr__` of a stand-in: rebuilds what the script defines when it is first asked for any of it.

    Raises:
        AttributeError: The training function reaches nothing of that name.
    """
    global _is_rebuilt
    names = vars(sys.modules[_MAIN])
    if not _is_rebuilt and _payload and not name.startswith("__"):
        _is_rebuilt = True
        cloudpickle.loads(_payload)
    if name not in names:
        raise AttributeError(
            f"the training function reaches no {name!r} of the script, so it is not known in this process"
        )
    return names[name]


class _Names:
    """Stands, on the way, for the script's names."""

    def __reduce__(self) -> tuple[Any, ...]:
        main = vars(sys.modules[_MAIN])
        return _names, ({key: main[key] for key in _OF_THE_MODULE if key in main},)


_NAMES = _Names()


def _names(of_the_module: dict[str, Any]) -> dict[str, Any]:
    names = vars(sys.modules[_MAIN])
    names.update(of_the_module)
    return names


def _placed(make: Any, arguments: tuple[Any, ...], name: str) -> Any:
    """Makes it, and before it is filled: its own methods may be what asks for it."""
    made = make(*arguments)
    if "." not in name:
        vars(sys.modules[_MAIN])[name] = made
    elif isinstance(made, type):
        made.__qualname__ = name  # a class in a class, which cloudpickle calls by its last name
    return made


def in_its_place(value: Any, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """How a class or function travels by value, if it is the script's: to its name, among the script's other names.

    Args:
        reduced: How cloudpickle would send it: with names of its own that no module has.
    """
    main = sys.modules[_MAIN]
    make, arguments, *rest = reduced
    if isinstance(value, FunctionType) and value.__globals__ is vars(main) and isinstance(arguments[1], dict):
        arguments = (arguments[0], _NAMES, *arguments[2:])
    name = _name_of(value)
    # Another of the same name may have taken its place since, in a notebook for example: pickle would not take the one for the other.
    if getattr(value, "__module__", None) == _MAIN and _at(main, name) is value:
        return _placed, (make, arguments, name), *rest
    return make, arguments, *rest


def by_value(value: Any) -> tuple[Any, ...] | None:
    """How things of the script's travel that Python and cloudpickle know by their names alone; None for all others."""
    if not isinstance(value, _CACHED | _NEW_TYPE | _TYPE_PARAMETERS):
        return None
    # A cached `functools.partial` has neither.
    place, name = getattr(value, "__module__", None), _name_of(value)
    module = sys.modules.get(place or "")
    if module is not None and place != _MAIN and _at(module, name) is value:
        return None
    if isinstance(value, _NEW_TYPE):
        return _new_type, (value.__qualname__, value.__supertype__, value.__module__)
    if isinstance(value, _TYPE_PARAMETERS):
        options = {key: getattr(value, f"__{key}__") for key in _OF_TYPE_PARAMETERS if hasattr(value, f"__{key}__")}
        return _type_parameter, (type(value), value.__name__, options, value.__module__)
    return _with_cache, (value.__wrapped__, value.cache_parameters())


def _with_cache(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _new_type(name: str, supertype: Any, module: str) -> Any:
    made = _NEW_TYPE(name, supertype)
    made.__module__ = module
    return made


def _type_parameter(kind: Any, name: str, options: dict[str, Any], module: str) -> Any:
    made = kind(name, **options)
    made.__module__ = module
    return made


def _name_of(value: Any) -> str:
    found: str = value.__name__ if isinstance(value, _TYPE_PARAMETERS) else getattr(value, "__qualname__", "")
    return found


def _at(module: ModuleType, name: str) -> Any:
    found: Any = vars(module).get(name.partition(".")[0])
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    return found
