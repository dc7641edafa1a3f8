"""`prepare_data_loader`: each rank its share of the data, on its device."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from holdfast.errors import ConfigurationError
from holdfast.torch.devices import get_device
from holdfast.torch.reproducibility import loader_seed
from holdfast.torch.transfer import DeviceLoader
from holdfast.worker.context import get_context

logger = logging.getLogger("holdfast.torch")

T = TypeVar("T")


def prepare_data_loader(
    data_loader: DataLoader[T],
    add_dist_sampler: bool = True,
    move_to_device: bool = True,
    auto_transfer: bool = True,
) -> DataLoader[T]:
    """Gives each rank its own share of the data, and brings its batches to this worker's device.

    Everything else about the loader stays. Where it shuffled, call `loader.sampler.set_epoch(epoch)` at the start of
    every epoch (with two workers or more): without it each epoch has the same order, as with torch's own
    `DistributedSampler`. The shares are equally long; where the data do not divide, a few items appear twice. A loader's
    own `DistributedSampler`, batch sampler or sampler of an unknown class is left as it is, and so is an
    `IterableDataset`, which must share out its items by itself.

    Args:
        data_loader: As for a single process; `batch_size` is that of one rank.
        add_dist_sampler: False if every rank is to see all the data.
        move_to_device: False if the function moves batches itself. Tensors are found in dicts, lists and tuples of any
            depth; anything else with a `to()` is moved by it.
        auto_transfer: On a GPU, copies the next batch while this one is trained on. Needs `pin_memory=True` to overlap.

    Raises:
        OutsideWorkerError: Called outside a training function.
        ConfigurationError: Not a `DataLoader`.
    """
    if not isinstance(data_loader, DataLoader):
        raise ConfigurationError(
            f"prepare_data_loader takes a torch.utils.data.DataLoader, not {type(data_loader).__name__}"
        )
    context = get_context()
    loader = data_loader
    if add_dist_sampler and context.get_world_size() > 1:
        sampler = _shared_sampler(loader, context.get_world_rank(), context.get_world_size())
        if sampler is not None:
            loader = _with_sampler(loader, sampler)
    seed = loader_seed(context.get_world_rank())
    if seed is not None and loader.generator is None:
        loader = copy.copy(loader)
        loader.generator = torch.Generator().manual_seed(seed)
    device = get_device()
    # Batches are made in the CPU's memory: for a CPU there is nothing to do, and no wrapper to pay for.
    if not move_to_device or device.type == "cpu":
        return loader
    return DeviceLoader(loader, device, ahead=auto_transfer)


def _shared_sampler(loader: DataLoader[Any], rank: int, world_size: int) -> DistributedSampler[Any] | None:
    """A sampler of this rank's share, or None where the loader must keep its own."""
    if isinstance(loader.dataset, IterableDataset) or isinstance(loader.sampler, DistributedSampler):
        return None
    if loader.batch_size is None and loader.batch_sampler is not None:
        _say_left(loader.batch_sampler)
        return None
    kind = type(loader.sampler)
    if kind in (SequentialSampler, RandomSampler) and _draws_all(loader.sampler):
        shuffle = kind is RandomSampler
        return DistributedSampler(loader.dataset, num_replicas=world_size, rank=rank, shuffle=shuffle)
    if kind in (RandomSampler, SubsetRandomSampler, WeightedRandomSampler):
        return DistributedDraw(cast("Sampler[Any]", loader.sampler), rank, world_size)
    _say_left(loader.sampler)
    return None


def _draws_all(sampler: object) -> bool:
    """Whether a sampler gives each item once, rather than a number of draws."""
    return not isinstance(sampler, RandomSampler) or (
        not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    )


def _say_left(sampler: object) -> None:
    logger.warning(
        "prepare_data_loader leaves the loader's own %s as it is, so every rank sees all that it gives; "
        "let it give each rank its share, or pass add_dist_sampler=False to say that this is meant",
        type(sampler).__name__,
    )


def _with_sampler(loader: DataLoader[T], sampler: Sampler[Any]) -> DataLoader[T]:
    # A copy, not a new DataLoader from a list of arguments: it keeps what a subclass or a later torch adds. The
    # dictionary is written because a DataLoader refuses to have these replaced by assignment.
    clone = copy.copy(loader)
    state = vars(clone)
    state["sampler"] = sampler
    if loader.batch_sampler is not None and loader.batch_size is not None:
        state["batch_sampler"] = BatchSampler(sampler, loader.batch_size, loader.drop_last)
    if "_iterator" in state:  # the running workers of a persistent loader, which know the old sampler
        state["_iterator"] = None
    return clone


class DistributedDraw(DistributedSampler[Any]):
    """Shares out what a random sampler draws: all ranks make the same draw, and each takes its part.

    Args:
        sampler: One of torch's own. Its generator, if it has one, must be seeded alike on every rank.
    """

    def __init__(self, sampler: Sampler[Any], rank: int, world_size: int) -> None:
        super().__init__(range(len(sampler)), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        """This rank's part of the epoch's draw."""
        with torch.random.fork_rng(devices=[]):
            # The draw follows the epoch alone, so that ranks whose random states differ agree on it.
            torch.manual_seed(self.seed + self.epoch)
            drawn = list(self._sampler)
        return iter([drawn[position] for position in super().__iter__()])
