"""Each rank gets its share, nothing is lost, and the loader stays what it was."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from holdfast import ConfigurationError, OutsideWorkerError
from holdfast.torch import enable_reproducibility, prepare_data_loader

AsRank = Callable[..., None]


class Numbers(Dataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def shares(as_rank: AsRank, world_size: int, make: Callable[[], DataLoader[Any]]) -> list[list[int]]:
    found = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        found.append([item for batch in prepare_data_loader(make()) for item in batch.tolist()])
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(count=st.integers(1, 60), world_size=st.integers(2, 5), batch_size=st.integers(1, 7), shuffle=st.booleans())
def test_every_item_is_seen_and_shares_are_equal(
    as_rank: AsRank, count: int, world_size: int, batch_size: int, shuffle: bool
) -> None:
    found = shares(as_rank, world_size, lambda: DataLoader(Numbers(count), batch_size=batch_size, shuffle=shuffle))
    assert len({len(share) for share in found}) == 1
    seen = Counter(item for share in found for item in share)
    assert set(seen) == set(range(count))
    # Only what fills up the last share comes twice.
    assert sum(seen.values()) - count < world_size


def test_a_loader_that_does_not_shuffle_keeps_its_order(as_rank: AsRank) -> None:
    assert shares(as_rank, 2, lambda: DataLoader(Numbers(6), batch_size=2)) == [[0, 2, 4], [1, 3, 5]]


def test_set_epoch_changes_the_order_alike_on_every_rank(as_rank: AsRank) -> None:
    orders = []
    for epoch in (0, 1):
        seen = []
        for rank in range(2):
            as_rank(rank, 2)
            loader = prepare_data_loader(DataLoader(Numbers(20), batch_size=3, shuffle=True))
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            seen += [item for batch in loader for item in batch.tolist()]
        assert sorted(seen) == list(range(20))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_every_other_argument_stays(as_rank: AsRank) -> None:
    def collate(items: list[int]) -> list[int]:
        return items

    def begin(worker: int) -> None:
        pass

    generator = torch.Generator()
    given_loader = DataLoader(
        Numbers(9),
        batch_size=2,
        shuffle=True,
        num_workers=1,  # more would be warned of on a machine of one core
        collate_fn=collate,
        drop_last=True,
        timeout=7,
        worker_init_fn=begin,
        multiprocessing_context="fork",
        generator=generator,
        prefetch_factor=3,
        persistent_workers=True,
    )
    as_rank(0, 2)
    loader = prepare_data_loader(given_loader)
    for name in ("dataset", "batch_size", "num_workers", "collate_fn", "drop_last", "timeout", "worker_init_fn"):
        assert getattr(loader, name) == getattr(given_loader, name), name
    for name in ("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers", "pin_memory"):
        assert getattr(loader, name) == getattr(given_loader, name), name
    assert isinstance(loader.batch_sampler, BatchSampler)
    assert loader.batch_sampler.drop_last
    assert len(loader) == 2
    # The one that was handed in is untouched.
    assert isinstance(given_loader.sampler, RandomSampler)


def test_a_subclass_stays_one(as_rank: AsRank) -> None:
    class Doubled(DataLoader[int]):
        def __init__(self, name: str) -> None:
            super().__init__(Numbers(4), batch_size=2)
            self.name = name

        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            return (2 * batch for batch in super().__iter__())

    as_rank(1, 2)
    loader = prepare_data_loader(Doubled("mine"))
    assert loader.name == "mine"  # type: ignore[attr-defined]
    assert [batch.tolist() for batch in loader] == [[2, 6]]


def test_without_automatic_batches(as_rank: AsRank) -> None:
    as_rank(1, 2)
    assert list(prepare_data_loader(DataLoader(Numbers(4), batch_size=None))) == [1, 3]


def test_persistent_workers_that_ran_before_know_nothing_of_the_new_sampler(as_rank: AsRank) -> None:
    plain = DataLoader(Numbers(8), batch_size=2, num_workers=1, persistent_workers=True)
    assert len(list(plain)) == 4
    as_rank(0, 2)
    loader = prepare_data_loader(plain)
    for _ in range(2):
        assert [batch.tolist() for batch in loader] == [[0, 2], [4, 6]]


def test_what_shares_by_itself_is_left_alone(as_rank: AsRank) -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    as_rank(0, 2)
    own = DistributedSampler(Numbers(4), num_replicas=2, rank=1)
    loader = DataLoader(Numbers(4), sampler=own)
    assert prepare_data_loader(loader).sampler is own
    assert [batch.tolist() for batch in prepare_data_loader(DataLoader(Stream(), batch_size=2))] == [[0, 1], [2, 3]]


def test_a_sampler_of_unknown_kind_is_left_alone_and_named(as_rank: AsRank, caplog: pytest.LogCaptureFixture) -> None:
    class Mine(SequentialSampler):
        pass

    as_rank(0, 2)
    sampler = Mine(Numbers(4))
    batches = BatchSampler(SequentialSampler(Numbers(4)), 2, False)
    with caplog.at_level(logging.WARNING, "holdfast.torch"):
        assert prepare_data_loader(DataLoader(Numbers(4), sampler=sampler)).sampler is sampler
        assert prepare_data_loader(DataLoader(Numbers(4), batch_sampler=batches)).batch_sampler is batches
        prepare_data_loader(DataLoader(Numbers(4), sampler=sampler), add_dist_sampler=False)
    assert [record.args for record in caplog.records] == [("Mine",), ("BatchSampler",)]


def test_a_subset_is_shared_without_what_lies_outside_of_it(as_rank: AsRank) -> None:
    torch.manual_seed(1)  # ranks whose random states differ must draw alike all the same
    found = shares(as_rank, 2, lambda: DataLoader(Numbers(100), batch_size=2, sampler=SubsetRandomSampler(range(8))))
    assert sorted(found[0] + found[1]) == list(range(8))


def test_weights_count_on_every_rank(as_rank: AsRank) -> None:
    weights = [0.0, 1.0, 0.0, 3.0]
    found = shares(as_rank, 2, lambda: DataLoader(Numbers(4), sampler=WeightedRandomSampler(weights, 400)))
    assert [len(share) for share in found] == [200, 200]
    drawn = Counter(found[0] + found[1])
    assert set(drawn) == {1, 3}
    assert 200 < drawn[3] < 400


def test_a_number_of_draws_stays_that_number(as_rank: AsRank) -> None:
    def make() -> DataLoader[int]:
        numbers = Numbers(5)
        return DataLoader(numbers, sampler=RandomSampler(numbers, replacement=True, num_samples=40))

    assert [len(share) for share in shares(as_rank, 2, make)] == [20, 20]


def test_drawing_leaves_the_random_state_of_the_rank_alone(as_rank: AsRank) -> None:
    as_rank(0, 2)
    loader = prepare_data_loader(DataLoader(Numbers(8), sampler=SubsetRandomSampler(range(8))))
    torch.manual_seed(5)
    list(loader.sampler)
    assert torch.initial_seed() == 5


def test_one_worker_gets_its_own_loader_back(as_rank: AsRank) -> None:
    as_rank(0, 1)
    loader = DataLoader(Numbers(4), shuffle=True)
    assert prepare_data_loader(loader) is loader


def test_reproducibility_gives_each_rank_its_own_seed(as_rank: AsRank, restored_torch: None) -> None:
    enable_reproducibility(seed=3)
    seeds = []
    for rank in (0, 1, 0):
        as_rank(rank, 2)
        generator = prepare_data_loader(DataLoader(Numbers(4))).generator
        assert generator is not None
        seeds.append(generator.initial_seed())
    assert seeds[0] == seeds[2] != seeds[1]


@pytest.fixture
def restored_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def test_bad_calls(as_rank: AsRank) -> None:
    with pytest.raises(OutsideWorkerError):
        prepare_data_loader(DataLoader(Numbers(4)))
    with pytest.raises(ConfigurationError, match="not TensorDataset"):
        prepare_data_loader(TensorDataset(torch.zeros(2)))  # type: ignore[arg-type]
    for seed in (-1, 2**32, 0.5, True):
        with pytest.raises(ConfigurationError, match="whole number"):
            enable_reproducibility(seed)  # type: ignore[arg-type]
