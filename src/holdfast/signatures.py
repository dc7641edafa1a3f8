"""What functions of users' take, by their signatures: a call that cannot work is refused before anything runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from holdfast.checks import nearest
from holdfast.errors import ConfigurationError

_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


def takes_config(function: Callable[..., Any], what: str) -> bool | None:
    """Whether a training function takes its config, or nothing; None where it does not say.

    Args:
        what: How the function is called in the error, e.g. `train_loop_per_worker`.

    Raises:
        ConfigurationError: It can be called with neither.
    """
    outer = _signature(function, follow_wrapped=False)
    if outer is None:
        return None
    if not _binds(outer, {}):
        if _binds(outer):
            return False
        raise ConfigurationError(
            f"{what} {_call(function, outer)} cannot be called: a worker gives it the config as its only argument, or none. Take "
            f"{', '.join(map(repr, _left(outer)))} from the config (train_loop_config), or give a default"
        )
    if not _binds(outer):
        return True
    # It can be called both ways. A decorator takes whatever comes and hands it on, so what it wraps decides.
    inner = _signature(function, follow_wrapped=True) or outer
    return any(each.kind in _POSITIONAL for each in inner.parameters.values())


def check_takes(function: object, num_arguments: int, what: str, names: str) -> None:
    """Refuses what cannot be called with so many positional arguments, as far as it says what it takes.

    Args:
        what: Where it was given.
        names: What the arguments are, for the error.

    Raises:
        ConfigurationError: It is no function, or one of other arguments.
    """
    if not callable(function):
        raise ConfigurationError(f"{what} must be a function ({names}), not {function!r}")
    found = _signature(function, follow_wrapped=True)
    if found is not None and not _binds(found, *range(num_arguments)):
        raise ConfigurationError(f"{what} is called as ({names}), which {_call(function, found)} does not take")


@dataclass(frozen=True)
class Keywords:
    """The keyword arguments that a function takes beside its first, positional one.

    Attributes:
        call: The function as a person writes its call.
        names: Those that it names.
        required: Those without a default.
        takes_any: Whether it takes others, too.
    """

    call: str
    names: list[str]
    required: list[str]
    takes_any: bool

    @classmethod
    def of(cls, function: Callable[..., Any], what: str) -> Keywords:
        """Those of a function that is called with one positional argument and keyword arguments.

        Raises:
            ConfigurationError: It takes no positional argument.
        """
        signature = _signature(function, follow_wrapped=False)
        if signature is None:
            return cls(_name(function), [], [], takes_any=True)
        parameters = list(signature.parameters.values())
        if not parameters or parameters[0].kind not in _POSITIONAL:
            raise ConfigurationError(
                f"{what} {_call(function, signature)} cannot be called: its first argument is the checkpoint, by position"
            )
        rest = parameters if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[1:]
        named = [each for each in rest if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        return cls(
            _call(function, signature),
            [each.name for each in named],
            [each.name for each in named if each.default is each.empty],
            takes_any=any(each.kind is each.VAR_KEYWORD for each in parameters),
        )

    def check_known(self, given: Collection[str], where: str) -> None:
        """Refuses arguments that the function does not take.

        Raises:
            ConfigurationError: There is one.
        """
        for name in given:
            if name not in self.names and not self.takes_any:
                meant = nearest(name, self.names)
                raise ConfigurationError(
                    f"{where} has {name!r}, which {self.call} does not take"
                    + (f"; did you mean {meant!r}?" if meant else "")
                )

    def check_all(self, given: Collection[str], where: str) -> None:
        """Refuses arguments with which the function cannot be called.

        Raises:
            ConfigurationError: It does not take one, or needs another.
        """
        self.check_known(given, where)
        missing = [name for name in self.required if name not in given]
        if missing:
            raise ConfigurationError(f"{where} lacks {', '.join(map(repr, missing))}, which {self.call} needs")


def _signature(function: Callable[..., Any], *, follow_wrapped: bool) -> inspect.Signature | None:
    try:
        return inspect.signature(function, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError):  # of some that are written in C
        return None


def _binds(signature: inspect.Signature, *arguments: object) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _left(signature: inspect.Signature) -> list[str]:
    """The parameters that have no value once one argument is given."""
    try:
        given: Collection[str] = signature.bind_partial({}).arguments
    except TypeError:
        given = ()
    return [
        each.name
        for each in signature.parameters.values()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in given
    ]


def _name(function: Callable[..., Any]) -> str:
    plain = functools.reduce(lambda f, _: getattr(f, "func", f), range(8), function)
    return str(getattr(plain, "__qualname__", type(plain).__qualname__)).rpartition("<locals>.")[2]


def _call(function: Callable[..., Any], signature: inspect.Signature) -> str:
    # Neither annotations, which are long, nor defaults, whose texts may be anything.
    parts: list[str] = []
    for each in signature.parameters.values():
        star = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        parts.append(f"{star}{each.name}" + ("=…" if each.default is not each.empty else ""))
    return f"{_name(function)}({', '.join(parts)})"
