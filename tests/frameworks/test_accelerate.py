"""Accelerate on two workers: what each rank saves merges into one checkpoint, and training goes on from it exactly."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import holdfast as train
from holdfast import Checkpoint, FailureConfig, RunConfig, ScalingConfig

pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install holdfast[transformers]")

from holdfast.torch import TorchTrainer

PLAIN = [
    ("custom_checkpoint_0.pkl", 0),
    ("model.safetensors", 0),
    ("optimizer.bin", 0),
    ("random_states_0.pkl", 0),
    ("random_states_1.pkl", 1),
    ("scheduler.bin", 0),
]
SHARDED = [
    ("custom_checkpoint_0.pkl", 0),
    *[
        (f"{part}/{name}", rank)
        for part in ("optimizer_0", "pytorch_model_fsdp_0")
        for name, rank in ((".metadata", 0), ("__0_0.distcp", 0), ("__1_0.distcp", 1))
    ],
    ("random_states_0.pkl", 0),
    ("random_states_1.pkl", 1),
    ("scheduler.bin", 0),
]


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Functions of this module travel by value, and workers are forked from a process that has Accelerate."""
    import accelerate  # noqa: F401 - whatever the driver has imported, the workers' parent has, too

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def accelerator_of(config: dict[str, Any]) -> Any:
    from accelerate import Accelerator, DataLoaderConfiguration, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import PartialState

    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    if not config["sharded"]:
        return Accelerator(dataloader_config=loading)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, state_dict_type="SHARDED_STATE_DICT", cpu_ram_efficient_loading=False
    )
    accelerator = Accelerator(dataloader_config=loading, fsdp_plugin=plugin)
    # On CPUs Accelerate takes DDP instead, without a word, though FSDP2 works there. What a GPU would have it say:
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


class Steps:
    """What `register_for_checkpointing` keeps beside the rest."""

    def __init__(self) -> None:
        self.done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def loop(config: dict[str, Any]) -> list[tuple[int, float, float]]:
    """Trains for 3 epochs of 4 steps, and gives loss and rate of each step that it took."""
    import torch
    from accelerate.utils import set_seed

    rank, resumed = train.get_context().get_world_rank(), train.get_checkpoint()
    accelerator = accelerator_of(config)
    assert (accelerator.num_processes, accelerator.process_index) == (2, rank)
    set_seed(1)
    model: Any = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    rows = torch.utils.data.TensorDataset(torch.randn(64, 8))
    # With a generator of its own: else an iterator over it takes a number from the one that dropout uses.
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True, generator=torch.Generator())
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    steps, per_epoch = Steps(), len(loader)
    accelerator.register_for_checkpointing(steps)
    if resumed is not None:
        with resumed.as_directory() as directory:
            accelerator.load_state(directory)

    taken = []
    for epoch in range(steps.done // per_epoch, 3):
        loader.set_epoch(epoch)
        for (batch,) in accelerator.skip_first_batches(loader, steps.done % per_epoch):
            loss = model(batch).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            steps.done += 1
            taken.append((steps.done, loss.item(), scheduler.get_last_lr()[0]))
            if (rank, steps.done) == (1, config["killed_at"]) and resumed is None:
                os.kill(os.getpid(), signal.SIGKILL)
            if steps.done % 3 == 0:
                with tempfile.TemporaryDirectory() as directory:
                    accelerator.save_state(directory)
                    train.report({"step": steps.done}, checkpoint=Checkpoint.from_directory(directory))
    with tempfile.TemporaryDirectory() as directory:
        accelerator.save_model(model, directory)
        weights = Checkpoint.from_directory(directory) if rank == 0 else None
        train.report({"step": steps.done}, checkpoint=weights, checkpoint_dir_name="model")
    return taken


def fit(tmp_path: Path, name: str, **config: Any) -> train.Result:
    return TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ddp", "fsdp2"])
def test_a_rank_killed_in_mid_epoch_changes_nothing(sharded: bool, tmp_path: Path) -> None:
    calm = fit(tmp_path, "calm", sharded=sharded, killed_at=None)
    hit = fit(tmp_path, "hit", sharded=sharded, killed_at=8)
    # Model, optimizer, schedule, dropout and the order of the data: each step from the seventh is the same.
    assert [step for step, _, _ in hit.return_value] == list(range(7, 13))
    assert hit.return_value == calm.return_value[6:]
    *states, weights = train.Run(hit.path).checkpoints
    for each in states:
        assert [(file.path, file.rank) for file in each.checkpoint.files()] == (SHARDED if sharded else PLAIN)
        assert each.checkpoint.verify() == []
    assert [file.path for file in weights.checkpoint.files()] == ["model.safetensors"]

    from safetensors.torch import load

    with weights.checkpoint.open("model.safetensors") as file:
        shapes = {name: tuple(weight.shape) for name, weight in load(file.read()).items()}
    assert shapes == {"0.weight": (16, 8), "0.bias": (16,), "2.weight": (2, 16), "2.bias": (2,)}
