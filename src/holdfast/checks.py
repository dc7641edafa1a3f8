"""Checks of what a user configures: an error says what was written, what can be, and what may have been meant."""

from __future__ import annotations

import difflib
import enum
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from math import isfinite

from holdfast.errors import ConfigurationError


def check_int(what: str, value: object, minimum: int, hint: str) -> None:
    """Refuses what is no whole number of at least `minimum`.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{what} must be a whole number, not {value!r}; {hint}")
    if value < minimum:
        raise ConfigurationError(f"{what} must be at least {minimum}, not {value}; {hint}")


def check_seconds(what: str, value: object) -> None:
    """Refuses what is no time to wait.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigurationError(f"{what} must be seconds, 0 or more, not {value!r}")


def check_amount(what: str, value: object) -> None:
    """Refuses what is no number of things that a machine can have.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise ConfigurationError(f"{what} must be 0 or more, not {value!r}")


def check_variables(what: str, variables: object) -> None:
    """Refuses what no environment can hold.

    Raises:
        ConfigurationError: It is no dict of names to values, or one of them is none.
    """
    if variables is None:
        return
    if not isinstance(variables, Mapping):
        raise ConfigurationError(f"{what} must be a dict of names to values, not {variables!r}")
    for name, value in variables.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name or "\0" in str(value):
            raise ConfigurationError(f"{what} holds {name!r}: {value!r}, which no environment can")


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Refuses a word that is none of a few.

    Raises:
        ConfigurationError: It is none of them.
    """
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        shown = [repr(each) for each in known]
        raise ConfigurationError(f"{what} must be {_either(shown)}, not {value!r}{_meant(value, known, repr)}")


def check_member(what: str, value: object, kind: type[enum.Enum]) -> None:
    """Refuses what is no member of an enumeration, also the name of one.

    Raises:
        ConfigurationError: It is none.
    """
    if not isinstance(value, kind):
        known = [member.name for member in kind]
        shown = [f"{kind.__name__}.{name}" for name in known]
        meant = _meant(value, known, lambda name: f"{kind.__name__}.{name}")
        raise ConfigurationError(f"{what} must be {_either(shown)}, not {value!r}{meant}")


def check_package(module: str, name: str) -> None:
    """Says what to do where a framework is missing of which `holdfast` has a package of the same name.

    Raises:
        ImportError: It is.
    """
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"holdfast.{module} needs {name}. Install it with: pip install holdfast[{module}]", name=module
        )


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The name that somebody who typed `word` most likely meant, if any is near."""
    if not isinstance(word, str):
        return None
    by_folded = {name.lower(): name for name in reversed(list(known))}
    # "max" for "maximum": whoever writes a word out, or cuts it short, is not near by letters.
    folded = word.lower()
    starts = [name for name in by_folded if folded and (name.startswith(folded) or folded.startswith(name))]
    found = difflib.get_close_matches(folded, by_folded, n=1) or (starts if len(starts) == 1 else [])
    return by_folded[found[0]] if found else None


def _meant(word: object, known: Iterable[str], shown: Callable[[str], str]) -> str:
    found = nearest(word, known)
    return f"; did you mean {shown(found)}?" if found is not None else ""


def _either(shown: list[str]) -> str:
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
