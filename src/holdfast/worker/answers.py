"""Turns an answer of the controller into a value or an error."""

from __future__ import annotations

from typing import TypeVar

from holdfast.errors import HoldfastError, TrainingInterrupted, error_classes
from holdfast.worker import protocol

A = TypeVar("A", bound=protocol.Message)


def expect(answer: protocol.Answer, kind: type[A]) -> A:
    """The answer, if it is of that kind.

    Raises:
        HoldfastError: The class that the controller named, in a call that it refused.
        KeyboardInterrupt: The run is being stopped.
    """
    if isinstance(answer, kind):
        return answer
    if isinstance(answer, protocol.Refused):
        raise error_of(answer.kind, answer.text)
    raise HoldfastError(f"the controller answered {type(answer).__name__} where {kind.__name__} was due")


def error_of(kind: str, text: str) -> BaseException:
    """The error that a kind and a text stand for on their way between processes."""
    if kind == TrainingInterrupted.kind:
        return KeyboardInterrupt(text)
    cls = error_classes().get(kind, HoldfastError)
    # Some constructors ask for more than a text, which only the driver has.
    error = cls.__new__(cls)
    error.args = (text,)
    return error


def refusal_of(error: BaseException) -> protocol.Refused:
    """What stands for an error on its way between processes."""
    if isinstance(error, HoldfastError):
        return protocol.Refused(error.kind, str(error))
    return protocol.Refused("storage", f"{type(error).__name__}: {error}")
