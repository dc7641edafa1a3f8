"""Fails on purpose after the second epoch, and goes on from its checkpoint.

Run it: python examples/native_pytorch_restore.py [--storage DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import holdfast as train
import holdfast.torch


def train_func(config: dict[str, Any]) -> list[int]:
    rank = train.get_context().get_world_rank()
    torch.manual_seed(rank)
    inputs = torch.randn(100, 4)
    targets = inputs.sum(dim=1, keepdim=True)

    model: Any = holdfast.torch.prepare_model(nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    start_epoch = 0
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            model.module.load_state_dict(torch.load(Path(directory, "model.pt")))
            optimizer.load_state_dict(torch.load(Path(directory, "optimizer.pt")))
            start_epoch = torch.load(Path(directory, "extra_state.pt"))["epoch"] + 1

    for epoch in range(start_epoch, config["num_epochs"]):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        with tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            if rank == 0:
                # Everything that the part above restores, or the run would not go on where it was.
                torch.save(model.module.state_dict(), Path(directory, "model.pt"))
                torch.save(optimizer.state_dict(), Path(directory, "optimizer.pt"))
                torch.save({"epoch": epoch}, Path(directory, "extra_state.pt"))
                checkpoint = train.Checkpoint.from_directory(directory)
            train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)

        if epoch == 1:
            raise RuntimeError("Intentional error to showcase restoration!")

    return list(range(start_epoch, config["num_epochs"]))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--storage", help="where runs lie (default: ~/holdfast_results)")
options = parser.parse_args()

result = holdfast.torch.TorchTrainer(
    train_func,
    train_loop_config={"num_epochs": 5},
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(
        storage_path=options.storage,
        failure_config=train.FailureConfig(max_failures=1),
    ),
).fit()

# The second attempt began with epoch 2, and no epoch was reported twice.
assert result.return_value == [2, 3, 4], result.return_value
epochs = [report["metrics"]["epoch"] for report in train.Run(result.path).reports()]
assert epochs == [0, 1, 2, 3, 4], epochs
print(f"resumed at epoch {result.return_value[0]} after the failure; last metrics: {result.metrics}")
