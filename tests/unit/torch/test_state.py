"""`save_state` and `load_state` in one process, without workers."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from holdfast.errors import DamagedCheckpointError, FormatError, StateError, StorageError
from holdfast.torch import load_state, save_state


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained(seed=0, make=lambda model: torch.optim.AdamW(model.parameters(), lr=0.1)):
    model = network(seed)
    optimizer = make(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
    return model, optimizer


def assert_same(ours, theirs):
    """Compares nested state dicts."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.1),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        lambda model: torch.optim.Adam(
            [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "lr": 0.25}], amsgrad=True
        ),
    ],
)
def test_models_optimizers_and_schedulers_come_back(tmp_path, make):
    model, optimizer = trained(make=make)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4, 4])
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    save_state({"model": model, "optimizer": optimizer, "scheduler": scheduler}, tmp_path)

    other = network(1)
    fresh = make(other)
    clock = torch.optim.lr_scheduler.MultiStepLR(fresh, [1])
    load_state({"model": other, "optimizer": fresh, "scheduler": clock}, tmp_path)
    assert_same(model.state_dict(), other.state_dict())
    assert_same(optimizer.state_dict(), fresh.state_dict())
    assert_same(scheduler.state_dict(), clock.state_dict())


def test_tensors_are_filled_in_place_and_values_replaced(tmp_path):
    tensors = {
        "0-d": torch.tensor(2.5), "bool": torch.tensor([True, False]), "empty": torch.empty(0, 3),
        "complex": torch.tensor([1 + 2j]), "bf16": torch.ones(2, dtype=torch.bfloat16),
        "u16": torch.tensor([65535], dtype=torch.uint16), "slice": torch.arange(12).reshape(3, 4)[:, 1:3],
    }  # fmt: skip
    state = {**tensors, "list": [torch.ones(2), 5], "plain": {"x": (1, {2})}, "numpy": np.arange(3), "epoch": 3}
    save_state(state, tmp_path)
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    target = {**into, "list": [torch.zeros(2), 0], "plain": None, "numpy": None, "epoch": 0}
    load_state(target, tmp_path)
    for name, tensor in tensors.items():
        assert target[name] is into[name]
        assert torch.equal(into[name], tensor)
    assert torch.equal(target["list"][0], torch.ones(2))
    assert (target["list"][1], target["plain"], target["epoch"]) == (5, {"x": (1, {2})}, 3)
    assert np.array_equal(target["numpy"], np.arange(3))


def test_random_states_come_back(tmp_path):
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    save_state({"random": states}, tmp_path)
    drawn = random.random(), np.random.rand(), torch.rand(1)
    back = {"random": {"python": None, "numpy": None, "torch": torch.get_rng_state()}}
    load_state(back, tmp_path)
    random.setstate(back["random"]["python"])
    np.random.set_state(back["random"]["numpy"])
    torch.set_rng_state(back["random"]["torch"])
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


def test_a_part_is_loaded_alone(tmp_path):
    model, optimizer = trained()
    save_state({"model": model, "optimizer": optimizer, "epoch": 3}, tmp_path)
    other = network(1)
    load_state({"model": other}, tmp_path)
    assert_same(model.state_dict(), other.state_dict())
    state = {"epoch": 0}
    load_state(state, tmp_path)
    assert state == {"epoch": 3}


def test_parameters_that_no_step_touched_have_no_state_afterwards(tmp_path):
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = torch.optim.Adam(model.parameters())
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_state({"model": model, "optimizer": optimizer}, tmp_path)
    other = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    fresh = torch.optim.Adam(other.parameters())
    load_state({"model": other, "optimizer": fresh}, tmp_path)
    assert_same(optimizer.state_dict(), fresh.state_dict())


def test_extra_state_and_tied_weights(tmp_path):
    class Counted(nn.Linear):
        calls = 0

        def get_extra_state(self):
            return {"calls": self.calls, "seen": torch.ones(1) * self.calls}

        def set_extra_state(self, state):
            self.calls, self.seen = state["calls"], state["seen"]

    model = nn.Sequential(Counted(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[0].calls = 7
    save_state({"model": model}, tmp_path)
    other = nn.Sequential(Counted(2, 2), nn.Linear(2, 2))
    other[1].weight = other[0].weight
    load_state({"model": other}, tmp_path)
    assert other[0].calls == 7
    assert torch.equal(other[0].seen, torch.tensor([7.0]))
    assert torch.equal(other[1].weight, model[0].weight)


def test_any_tool_can_read_the_tensors(tmp_path):
    save_state({"model": network(), "step": torch.tensor(3), "odd/name": torch.ones(1)}, tmp_path)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["rank-00000.safetensors", "values.json"]
    tensors = load_file(tmp_path / "state" / "rank-00000.safetensors")
    assert torch.equal(tensors["model/0.weight"], network()[0].weight)
    assert set(tensors) >= {"step", "odd%2Fname", "model/1.running_mean"}


def test_an_earlier_state_in_the_directory_is_replaced(tmp_path):
    save_state({"a": torch.ones(1), "b": 1}, tmp_path)
    save_state({"a": torch.zeros(1), "c": 2}, tmp_path)
    state = {"a": torch.ones(1), "c": 0}
    load_state(state, tmp_path)
    assert state == {"a": torch.zeros(1), "c": 2}
    with pytest.raises(StateError, match="'b'"):
        load_state({"b": 0}, tmp_path)


BAD_STATES = {
    "an object": ({"a": {"b": object()}}, "'a' is of the class|'a/b' is of the class object"),
    "a function": ({"a": print}, "'a'"),
    "an optimizer alone": ({"o": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1)}, "pass the model beside it"),
    "a value in a tuple": ({"a": (1, torch.ones(1))}, "use a list"),
    "a sparse tensor": ({"s": torch.ones(2).to_sparse()}, "to_dense"),
    "complex128": ({"s": torch.ones(1, dtype=torch.complex128)}, "view_as_real"),
    "no dict": ([1], "takes a dict"),
    "two keys of one name": ({1: 1, "1": 2}, "called '1'"),
}


@pytest.mark.parametrize("name", sorted(BAD_STATES))
def test_what_cannot_be_saved_is_named_before_anything_is_written(tmp_path, name):
    state, text = BAD_STATES[name]
    with pytest.raises(StateError, match=text):
        save_state(state, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"nope": 1}, "'nope' is not in the state"),
        ({"epoch": torch.ones(1)}, "has no 'epoch'"),
        ({"tensor": torch.ones(6)}, r"'tensor' is \(6,\) here and \(5,\) there"),
        ({"tensor": 3}, "'tensor' is a plain value here"),
        ({"group": None}, "'group/0'"),
        ({"model": nn.Linear(3, 4)}, "'model/weight'"),
        ({"epoch": nn.Linear(1, 1)}, "is a module here, and was saved as a plain value"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_left_alone(tmp_path, state, text):
    save_state({"epoch": 3, "tensor": torch.arange(5), "group": [torch.ones(1)], "model": network()}, tmp_path)
    whole = {**state, "tensor": state.get("tensor", torch.zeros(5, dtype=torch.int64))}
    with pytest.raises(StateError, match=text):
        load_state(whole, tmp_path)
    if "tensor" not in state:
        assert torch.equal(whole["tensor"], torch.zeros(5, dtype=torch.int64))


def test_what_is_no_state_or_of_a_later_version(tmp_path):
    with pytest.raises(FormatError, match="no state"):
        load_state({"a": 1}, tmp_path)
    save_state({"a": 1}, tmp_path)
    values = tmp_path / "state" / "values.json"
    document = json.loads(values.read_text())
    values.write_text(json.dumps({**document, "format_version": 99}))
    with pytest.raises(FormatError, match="newer Holdfast"):
        load_state({"a": 0}, tmp_path)
    values.write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        load_state({"a": 0}, tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    save_state({"a": torch.ones(1)}, tmp_path)
    (tmp_path / "state" / "rank-00000.safetensors").unlink()
    with pytest.raises(StateError, match=r"rank-00000\.safetensors; every rank must report"):
        load_state({"a": torch.zeros(1)}, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="save_state"):
        save_state({"a": torch.ones(1)}, tmp_path)


def test_a_file_where_the_directory_should_be(tmp_path):
    Path(tmp_path, "state").write_text("x")
    with pytest.raises(StorageError, match="save_state"):
        save_state({"a": torch.ones(1)}, tmp_path)


@pytest.mark.parametrize("name", ["Adam", "Rprop", "SGD"])
def test_saving_changes_nothing_of_the_training(tmp_path, name):
    """Also before the first step, where torch's own function would make one to have a state to show."""

    def train(saves):
        model = network()
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
        for step in range(3):
            if saves:
                save_state({"model": model, "optimizer": optimizer}, tmp_path / f"{step}")
            optimizer.zero_grad()
            model(torch.arange(15.0).reshape(5, 3)).sum().backward()
            optimizer.step()
        return model.state_dict()

    assert_same(train(saves=True), train(saves=False))


def test_what_the_fresh_optimizer_does_not_have_yet_is_loaded_all_the_same(tmp_path):
    model, optimizer = trained()
    optimizer.param_groups[0]["initial_lr"] = 0.5
    save_state({"model": model, "optimizer": optimizer}, tmp_path)
    other = network(1)
    fresh = torch.optim.AdamW(other.parameters())
    other(torch.ones(2, 3)).sum().backward()  # a gradient without a step: torch makes no state then
    load_state({"model": other, "optimizer": fresh}, tmp_path)
    assert_same(optimizer.state_dict(), fresh.state_dict())


def test_a_refused_load_leaves_a_fresh_optimizer_fresh(tmp_path):
    model, optimizer = trained()
    save_state({"model": model, "optimizer": optimizer}, tmp_path)
    other = network(1)
    fresh = torch.optim.AdamW(other.parameters())
    with pytest.raises(StateError):
        load_state({"model": other, "optimizer": fresh, "nope": 1}, tmp_path)
    assert not fresh.state
    assert_same(other.state_dict(), network(1).state_dict())


def test_an_empty_group_and_several_optimizers_of_one_model(tmp_path):
    def make(seed):
        model = network(seed)
        return model, [
            torch.optim.Adam([{"params": model[0].parameters(), "lr": 0.5}, {"params": []}]),
            torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9),
        ]

    model, optimizers = make(0)
    model(torch.randn(5, 3)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    save_state({"model": model, "optimizers": optimizers}, tmp_path)
    other, fresh = make(1)
    load_state({"model": other, "optimizers": fresh}, tmp_path)
    for ours, theirs in zip(optimizers, fresh, strict=True):
        assert_same(ours.state_dict(), theirs.state_dict())


def test_a_module_that_gives_copies_of_its_tensors_is_loaded_by_its_own_hooks(tmp_path):
    class Scaled(nn.Linear):
        def state_dict(self, *args, **kwargs):
            state = super().state_dict(*args, **kwargs)
            return {key: value.clone() for key, value in state.items()}

    model, other = Scaled(2, 2), Scaled(2, 2)
    called = []
    other.register_load_state_dict_post_hook(lambda *_: called.append(1))
    save_state({"model": model}, tmp_path)
    load_state({"model": other}, tmp_path)
    assert torch.equal(model.weight, other.weight)
    assert called


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"tensor": torch.zeros(5, dtype=torch.int64)}, "int64 here and float32 there"),
        ({"model": nn.Linear(3, 4, device="meta")}, "to_empty"),
    ],
)
def test_numbers_that_would_become_others_and_tensors_without_memory(tmp_path, state, text):
    save_state({"tensor": torch.ones(5), "model": nn.Linear(3, 4)}, tmp_path)
    with pytest.raises(StateError, match=text):
        load_state(state, tmp_path)


def test_precision_may_change(tmp_path):
    save_state({"tensor": torch.full((2,), 1.5)}, tmp_path)
    state = {"tensor": torch.zeros(2, dtype=torch.bfloat16)}
    load_state(state, tmp_path)
    assert state["tensor"].tolist() == [1.5, 1.5]


def test_keys_that_may_be_missing_stay_as_they_are(tmp_path):
    save_state({"epoch": 3, "random": {"0": torch.ones(2)}}, tmp_path)
    state = {"epoch": 0, "random": {"0": torch.zeros(2), "1": torch.zeros(2)}, "new": {"a": 5}}
    with pytest.raises(StateError, match="random/1"):
        load_state({"random": {"1": torch.zeros(2)}}, tmp_path)
    with pytest.raises(StateError, match=r"optional=\['new'\]"):
        load_state({"new": 5}, tmp_path)
    load_state(state, tmp_path, optional=["random/1", "new"])
    assert state["epoch"] == 3
    assert torch.equal(state["random"]["0"], torch.ones(2))
    assert torch.equal(state["random"]["1"], torch.zeros(2))
    assert state["new"] == {"a": 5}


def test_a_part_of_a_module_is_loaded_as_a_dict_of_its_tensors(tmp_path):
    save_state({"model": network()}, tmp_path)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 9))
    with pytest.raises(StateError, match=r"2\.weight"):
        load_state({"model": other}, tmp_path)
    load_state({"model": {k: v for k, v in other.state_dict().items() if not k.startswith("2.")}}, tmp_path)
    assert torch.equal(other[0].weight, network()[0].weight)


def test_a_damaged_file_is_named(tmp_path):
    save_state({"a": torch.ones(1000)}, tmp_path)
    path = tmp_path / "state" / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedCheckpointError, match=r"rank-00000\.safetensors"):
        load_state({"a": torch.zeros(1000)}, tmp_path)


def test_no_directory():
    with pytest.raises(StateError, match="the directory to save into"):
        save_state({"a": 1}, None)


def test_a_second_save_that_fails_leaves_no_mix_of_two(tmp_path, monkeypatch):
    from holdfast.torch.state.writer import ShardWriter

    save_state({"w": torch.full((4,), 1.0), "epoch": 1}, tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "finish", full)
    with pytest.raises(StorageError, match="No space left"):
        save_state({"w": torch.full((4,), 2.0), "epoch": 2}, tmp_path)
    monkeypatch.undo()
    with pytest.raises(FormatError, match="There is no state"):
        load_state({"w": torch.zeros(4), "epoch": 0}, tmp_path)
    save_state({"w": torch.full((4,), 3.0), "epoch": 3}, tmp_path)
    state = {"w": torch.zeros(4), "epoch": 0}
    load_state(state, tmp_path)
    assert (state["w"].tolist(), state["epoch"]) == ([3.0] * 4, 3)


def test_what_cannot_be_saved_leaves_the_save_before_as_it_was(tmp_path):
    save_state({"w": torch.full((4,), 1.0)}, tmp_path)
    with pytest.raises(StateError, match="complex128"):
        save_state({"w": torch.zeros(4, dtype=torch.complex128)}, tmp_path)
    state = {"w": torch.zeros(4)}
    load_state(state, tmp_path)
    assert state["w"].tolist() == [1.0] * 4
