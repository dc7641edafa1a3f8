"""`save_state` among ranks that agree on a plan, or cannot: a known form is not planned again, and one rank's failure is everybody's."""

from __future__ import annotations

import tempfile

import torch

import holdfast as train
from holdfast import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from holdfast.torch import TorchTrainer, load_state, save_state


def run(function, tmp_path, workers, name="run", failures=0, **config):
    return TorchTrainer(
        function,
        train_loop_config={"base": str(tmp_path), **config},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=failures)
        ),
    ).fit()


def forms(config):
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    planned = []
    plan = DefaultSavePlanner.create_local_plan
    DefaultSavePlanner.create_local_plan = lambda self: planned.append(1) or plan(self)
    rank = train.get_context().get_world_rank()
    counts = []
    for step, keys in enumerate([["a"], ["a"], ["a", "b"], ["a"], ["a", "b"]]):
        # The form changes on one rank only.
        state = {key: torch.full((3,), step + 10 * rank) for key in (keys if rank else ["a"])}
        state["step"] = step
        with tempfile.TemporaryDirectory() as directory:
            save_state(state, directory)
            train.report({}, Checkpoint.from_directory(directory))
        counts.append(len(planned))
    DefaultSavePlanner.create_local_plan = plan
    return counts


def test_a_state_of_a_known_form_is_not_planned_again_and_one_of_another_is(tmp_path):
    result = run(forms, tmp_path, 2)
    # What rank 0 knows of its own form is replaced as often as rank 1 has another.
    assert result.return_value == [1, 1, 2, 3, 4]
    for step, each in enumerate(train.Run(tmp_path / "run").checkpoints):
        state = {"a": torch.zeros(3), "step": None} | ({"b": torch.zeros(3)} if step in (2, 4) else {})
        load_state(state, each.checkpoint)
        assert state["step"] == step
        assert state["a"].tolist() == [step] * 3
        if "b" in state:
            assert state["b"].tolist() == [step + 10] * 3


def told_on_each_rank(saves):
    """What every rank is told of each save: its error, or that it was saved."""
    told = []
    for save in saves:
        try:
            save()
        except (train.StateError, train.StorageError) as error:
            told.append(f"{error}")
        else:
            told.append("saved")
    texts = [None, None]
    torch.distributed.all_gather_object(texts, told)
    return texts


def refused_on_one_rank(config):
    rank = train.get_context().get_world_rank()
    directories = (tempfile.mkdtemp(), tempfile.mkdtemp(), "/proc/nowhere" if rank else tempfile.mkdtemp())
    return told_on_each_rank(
        [
            lambda directory=directory: save_state({"a": torch.ones(3)}, directory, in_memory=False)
            for directory in directories
        ]
    )


def test_what_one_rank_cannot_write_every_rank_hears_of_also_without_planning(tmp_path):
    first, second = run(refused_on_one_rank, tmp_path, 2).return_value
    assert first == second
    assert first[:2] == ["saved", "saved"]
    assert first[2].startswith("save_state failed on rank 1: FileNotFoundError")


def refused_before_saving(config):
    odd = torch.complex128 if train.get_context().get_world_rank() else torch.float32
    directory = tempfile.mkdtemp()
    return told_on_each_rank(
        [
            lambda dtype=dtype: save_state({"a": torch.ones(3, dtype=dtype)}, directory)
            for dtype in (torch.float32, odd, torch.float32)
        ]
    )


def test_a_rank_that_cannot_even_begin_leaves_no_other_waiting(tmp_path):
    first, second = run(refused_before_saving, tmp_path, 2).return_value
    assert (first[0], first[2], second[0], second[2]) == ("saved",) * 4
    assert first[1].startswith("on rank 1: save_state: the tensor 'a' is complex128")
    assert second[1].startswith("save_state: the tensor 'a' is complex128")


def smaller_than_it_says(config):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    whole = torch.arange(8.0)
    mesh = init_device_mesh("cpu", (1,))
    tensor = DTensor.from_local(whole[:4], mesh, [Shard(0)], run_check=False, shape=torch.Size([8]), stride=(1,))
    texts = []
    for in_memory in (True, False):
        with tempfile.TemporaryDirectory() as directory:
            try:
                save_state({"w": tensor}, directory, in_memory=in_memory)
            except train.StateError as error:
                texts.append(f"{error}")
    return texts


def test_a_part_that_is_smaller_than_the_tensor_says_is_refused_and_no_other_memory_is_read(tmp_path):
    texts = run(smaller_than_it_says, tmp_path, 1).return_value
    assert len(texts) == 2
    assert all("this rank's part of 'w' is (4,) of torch.float32, and should be (8,)" in text for text in texts)
