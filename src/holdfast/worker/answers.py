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
        if answer.kind == TrainingInterrupted.kind:
            raise KeyboardInterrupt(answer.text)
        cls = error_classes().get(answer.kind, HoldfastError)
        # `__new__` and args by hand: some classes ask for more than a text, which only the driver has.
        error = cls.__new__(cls)
        error.args = (answer.text,)
        raise error
    raise HoldfastError(f"the controller answered {type(answer).__name__} where {kind.__name__} was due")
