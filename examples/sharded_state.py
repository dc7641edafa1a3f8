"""A model sharded over 4 ranks (FSDP2) is saved by each rank's part, and training goes on with 2 ranks.

Run it: python examples/sharded_state.py [--storage DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import holdfast as train
from holdfast.torch import TorchTrainer, get_device, load_state, save_state


def train_func(config: dict[str, int]) -> None:
    rank, size = train.get_context().get_world_rank(), train.get_context().get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1)).to(get_device())
    mesh = init_device_mesh(get_device().type, (size,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "step": 0}
    if checkpoint := train.get_checkpoint():
        load_state(state, checkpoint)  # each rank reads its own part, whatever the number of ranks was

    for step in range(state["step"], config["steps"]):
        # The batch of a step is the same however many ranks share it.
        inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(step)).to(get_device())
        mine = inputs[rank::size]
        loss = (model(mine) - mine[:, :4].sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach()
        dist.all_reduce(total)

        state["step"] = step + 1
        with tempfile.TemporaryDirectory() as directory:
            save_state(state, directory)  # a copy in memory: training waits for no disk
            train.report(
                {"step": step, "loss": total.item() / size, "ranks": size},
                train.Checkpoint.from_directory(directory),
                checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC,
            )


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--storage", help="where runs lie (default: ~/holdfast_results)")
options = parser.parse_args()


def fit(name: str, num_workers: int, steps: int) -> train.Result:
    return TorchTrainer(
        train_func,
        train_loop_config={"steps": steps},
        scaling_config=train.ScalingConfig(num_workers=num_workers),
        run_config=train.RunConfig(
            name=name, storage_path=options.storage, checkpoint_config=train.CheckpointConfig(num_to_keep=2)
        ),
    ).fit()


fit("resharded", num_workers=4, steps=6)
resumed = fit("resharded", num_workers=2, steps=12)  # the same name: it goes on from the last checkpoint
undisturbed = fit("undisturbed", num_workers=4, steps=12)

print("step  4 then 2 ranks   4 ranks throughout")
for ours, theirs in zip(train.Run(resumed.path).reports(), train.Run(undisturbed.path).reports(), strict=True):
    there, here = theirs["metrics"], ours["metrics"]
    print(f"{here['step']:4}  {here['loss']:.6f} ({here['ranks']} ranks)  {there['loss']:.6f}")
    # Two ranks add up in another order than four, so the last digits may differ.
    assert abs(here["loss"] - there["loss"]) < 1e-4
print("the loss went on as if nothing had happened")

assert resumed.checkpoint is not None
for path in sorted(Path(resumed.checkpoint.path, "state").iterdir()):
    print(f"state/{path.name}: {path.stat().st_size} bytes")
