"""What ranks that save together tell each other; the steps of `torch.distributed.checkpoint`, with our errors.

A group of one talks to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from holdfast.errors import HoldfastError, StateError, StorageError

_Local = TypeVar("_Local")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Failure:
    is_state: bool
    text: str

    def error(self) -> HoldfastError:
        return StateError(self.text) if self.is_state else StorageError(self.text)


class Together:
    """The ranks of the default process group, or this process alone where there is none."""

    def __init__(self) -> None:
        self.is_group = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.is_group else 0
        self.size = dist.get_world_size() if self.is_group else 1

    def agree(self, every_rank: Callable[[], _Local]) -> list[_Local]:
        """Runs a function on every rank; what it returned on each, on every rank.

        Raises:
            StateError: It failed on some rank; raised on every rank.
            StorageError: Likewise, where it could not write.
        """
        errors: list[BaseException] = []
        mine = _attempt(every_rank, self.rank, errors)
        found: list[Any] = [mine]
        if self.size > 1:
            found = [None] * self.size
            dist.all_gather_object(found, mine)
        if errors and isinstance(errors[0], HoldfastError):
            raise errors[0]
        for each in found:
            if isinstance(each, _Failure):
                _raise(each, errors)
        return found

    def step(
        self, every_rank: Callable[[], _Local], first_rank: Callable[[list[_Local]], Sequence[_Result]]
    ) -> _Result:
        """Runs one function on every rank, and another, on the first, on all that they returned; each rank gets its part.

        Raises:
            StateError: A function failed on some rank; raised on every rank.
            StorageError: Likewise, where it could not write.
        """
        errors: list[BaseException] = []
        found = self._gather(_attempt(every_rank, self.rank, errors))
        parts: list[Any] | None = None
        if found is not None:
            failure = next((each for each in found if isinstance(each, _Failure)), None)
            if failure is None:
                given = _attempt(lambda: first_rank(found), self.rank, errors)
                parts = [given] * self.size if isinstance(given, _Failure) else list(given)
            else:
                parts = [failure] * self.size
        part = self._scatter(parts)
        if isinstance(part, _Failure):
            _raise(part, errors)
        result: _Result = part
        return result

    def _gather(self, value: Any) -> list[Any] | None:
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values)
        return values

    def _scatter(self, parts: list[Any] | None) -> Any:
        if self.size == 1:
            assert parts is not None
            return parts[0]
        received: list[Any] = [None]
        dist.scatter_object_list(received, parts)
        return received[0]


def _raise(failure: _Failure, errors: Sequence[BaseException]) -> NoReturn:
    cause = errors[0] if errors else None
    if cause is not None and not isinstance(cause, Exception):  # Ctrl-C
        raise cause
    raise failure.error() from cause


def _attempt(function: Callable[[], Any], rank: int, errors: list[BaseException]) -> Any:
    try:
        return function()
    except BaseException as error:  # noqa: BLE001 - every rank hears of it, and the one that met it raises it
        errors.append(error)
        if isinstance(error, HoldfastError):
            is_state = type(error) is StateError
            return _Failure(is_state, f"on rank {rank}: {error}" if is_state else str(error))
        text = f"save_state failed on rank {rank}: {type(error).__name__}: {error}"
        return _Failure(not isinstance(error, OSError), text)
