"""Batches reach the device whatever they are made of. (The `meta` device stands for a GPU.)"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from holdfast.torch import transfer
from holdfast.torch.transfer import DeviceLoader, move

META = torch.device("meta")
Pair = namedtuple("Pair", ["left", "right"])


def test_nested_batches_keep_their_shape() -> None:
    batch = {
        "a": torch.zeros(2),
        "b": [torch.zeros(1), (torch.zeros(1), "text")],
        "c": Pair(torch.zeros(1), 3),
        4: None,
    }
    moved = move(batch, META)
    assert moved["a"].is_meta
    assert isinstance(moved["b"], list)
    assert moved["b"][0].is_meta
    assert isinstance(moved["b"][1], tuple)
    assert moved["b"][1][0].is_meta
    assert moved["b"][1][1] == "text"
    assert isinstance(moved["c"], Pair)
    assert moved["c"].left.is_meta
    assert moved["c"].right == 3
    assert moved[4] is None
    assert not batch["a"].is_meta  # type: ignore[union-attr]


def test_other_mappings_stay_of_their_class_where_they_can_be_made() -> None:
    class Named(dict):  # type: ignore[type-arg]
        def __init__(self, name: str, size: int) -> None:
            super().__init__(x=torch.zeros(size))

    assert type(move(OrderedDict(x=torch.zeros(1)), META)) is OrderedDict
    assert move(UserDict(x=torch.zeros(1)), META)["x"].is_meta
    assert move(Named("n", 2), META)["x"].is_meta


def test_what_has_a_to_is_moved_by_it() -> None:
    class Graph:
        device: Any = None

        def to(self, device: torch.device) -> Graph:
            moved = Graph()
            moved.device = device
            return moved

    assert move([Graph()], META)[0].device == META
    packed = move(pack_sequence([torch.zeros(2)]), META)
    assert isinstance(packed, PackedSequence)
    assert packed.data.is_meta


def test_the_loader_looks_like_the_one_it_stands_for() -> None:
    base = DataLoader(TensorDataset(torch.arange(5)), batch_size=2)
    loader = DeviceLoader(base, META, ahead=True)
    assert isinstance(loader, DataLoader)
    assert len(loader) == 3
    assert loader.sampler is base.sampler
    assert loader.batch_size == 2
    for _ in range(2):
        assert [batch[0].is_meta for batch in loader] == [True] * 3


def test_a_subclass_keeps_its_methods() -> None:
    class Named(DataLoader[Any]):
        def name(self) -> str:
            return "mine"

    assert DeviceLoader(Named(TensorDataset(torch.zeros(1))), META, ahead=False).name() == "mine"


def test_the_next_batch_is_copied_before_this_one_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CUDA's streams: the order in which work is queued is what keeps memory from being reused."""
    told: list[str] = []

    class Stream:
        def __init__(self, device: object = None, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            told.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: str) -> None:
            told.append(f"{self.name} waits for {event}")

        def record_event(self) -> str:
            copied = sum(line.startswith("copy") for line in told)
            told.append(f"copy {copied}")
            return f"copy {copied}"

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(transfer, "move", lambda batch, device: batch)
    loader = DeviceLoader(DataLoader(range(2), batch_size=1), torch.device("cuda", 0), ahead=True)  # type: ignore[arg-type]
    for batch in loader:
        told.append(f"trains on {batch.item()}")  # noqa: PERF401 - iterating writes to the same list
    assert told == [
        "side waits for main",
        "copy 0",
        "side waits for main",
        "copy 1",
        "main waits for copy 0",
        "trains on 0",
        "main waits for copy 1",
        "trains on 1",
    ]
