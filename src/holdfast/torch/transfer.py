"""Bringing batches to a device, one ahead of the training where the device can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

T = TypeVar("T")


def move(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in it on `device`.

    Looks into mappings, lists and tuples (also named ones) of any depth; what has a `to()` is moved by that; anything
    else stays.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to") and not isinstance(batch, type):
        return batch.to(device)
    if isinstance(batch, Mapping):
        moved = {key: move(value, device) for key, value in batch.items()}
        return moved if type(batch) is dict else _like(batch, moved)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(item, device) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(item, device) for item in batch)
    return batch


def _like(batch: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    """The moved items in a mapping of the batch's own class, or in a dict where that cannot be made from one."""
    try:
        return type(batch)(moved)  # type: ignore[call-arg]
    except TypeError:
        return moved


class DeviceLoader(DataLoader[T]):
    """A data loader whose batches are on a device.

    It has the attributes of the loader that it stands for, `sampler` and `dataset` among them.

    Args:
        base: Where the batches come from.
        device: Where they go.
        ahead: On a GPU, copies the next batch on a stream of its own while the current one is in use.
    """

    def __init__(self, base: DataLoader[T], device: torch.device, *, ahead: bool) -> None:
        # Not the constructor of DataLoader: this one makes no batches.
        vars(self).update(vars(base))
        vars(self).update(_base=base, _device=device, _ahead=ahead)

    def __getattr__(self, name: str) -> Any:
        if name == "_base":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self._base, name)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._base)

    def __iter__(self) -> Iterator[T]:  # type: ignore[override] # an iterator of our own
        """The batches of one epoch."""
        if self._ahead and self._device.type == "cuda":
            return self._one_ahead()
        return (move(batch, self._device) for batch in self._base)

    def _one_ahead(self) -> Iterator[T]:
        source = iter(self._base)
        stream = torch.cuda.Stream(self._device)
        upcoming = self._copy_next(source, stream)
        while upcoming is not None:
            batch, copied = upcoming
            # From here to the yield the current stream holds all work on the batch before, and none on this one.
            upcoming = self._copy_next(source, stream)
            torch.cuda.current_stream(self._device).wait_event(copied)
            yield batch

    def _copy_next(self, source: Iterator[T], stream: torch.cuda.Stream) -> tuple[T, torch.cuda.Event] | None:
        try:
            batch = next(source)
        except StopIteration:
            return None
        # Memory of an earlier batch may be used again for this one: not before the work on that is done.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            moved: T = move(batch, self._device)
            return moved, stream.record_event()
