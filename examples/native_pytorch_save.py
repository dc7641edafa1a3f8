"""Trains a model on two workers and saves it after every epoch.

Run it: python examples/native_pytorch_save.py [--storage DIR]
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


def train_func(config: dict[str, Any]) -> None:
    torch.manual_seed(train.get_context().get_world_rank())
    inputs = torch.randn(100, 4)
    targets = inputs.sum(dim=1, keepdim=True)

    model: Any = holdfast.torch.prepare_model(nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    for epoch in range(config["num_epochs"]):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        with tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            # All ranks hold the same weights, so one of them saves; `module` is the model without DDP around it.
            if train.get_context().get_world_rank() == 0:
                torch.save(model.module.state_dict(), Path(directory, "model.pt"))
                checkpoint = train.Checkpoint.from_directory(directory)
            train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--storage", help="where runs lie (default: ~/holdfast_results)")
options = parser.parse_args()

result = holdfast.torch.TorchTrainer(
    train_func,
    train_loop_config={"num_epochs": 5},
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(storage_path=options.storage),
).fit()

print(f"last metrics: {result.metrics}")
print(f"last checkpoint: {result.checkpoint}")
