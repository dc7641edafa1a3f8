"""Every rank saves its own part; together they are one checkpoint.

Run it: python examples/one_shard_per_rank.py [--storage DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import holdfast as train
import holdfast.torch


def train_func() -> None:
    context = train.get_context()
    rank = context.get_world_rank()
    shard = torch.full((1000,), float(rank))

    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        # Takes only the file that this rank needs.
        with checkpoint.as_directory(include=[f"model-rank={rank}.pt"]) as directory:
            shard = torch.load(Path(directory, f"model-rank={rank}.pt"))

    with tempfile.TemporaryDirectory() as directory:
        # The ranks' files lie side by side in the checkpoint, so each needs a name of its own.
        torch.save(shard, Path(directory, f"model-rank={rank}.pt"))
        train.report({"ranks": context.get_world_size()}, checkpoint=train.Checkpoint.from_directory(directory))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--storage", help="where runs lie (default: ~/holdfast_results)")
options = parser.parse_args()

result = holdfast.torch.TorchTrainer(
    train_func,
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(storage_path=options.storage),
).fit()

assert result.checkpoint is not None
for file in result.checkpoint.files():
    print(f"{file.path}: {file.size_bytes} bytes, from rank {file.rank}")
