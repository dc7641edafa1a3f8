"""Keeps the two checkpoints with the highest accuracy, and the latest; deletes the others.

Run it: python examples/keep_best_two.py [--storage DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import holdfast as train

ACCURACIES = [0.1, 0.9, 0.4, 0.8, 0.3]


def train_func() -> None:
    for epoch, accuracy in enumerate(ACCURACIES):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "weights.txt").write_text(f"the weights of epoch {epoch}")
            train.report(
                {"epoch": epoch, "mean_accuracy": accuracy}, checkpoint=train.Checkpoint.from_directory(directory)
            )


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--storage", help="where runs lie (default: ~/holdfast_results)")
options = parser.parse_args()

result = train.DataParallelTrainer(
    train_func,
    run_config=train.RunConfig(
        storage_path=options.storage,
        checkpoint_config=train.CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="mean_accuracy", checkpoint_score_order="max"
        ),
    ),
).fit()

for checkpoint, metrics in result.best_checkpoints:  # the best one is last
    print(f"epoch {metrics['epoch']}, accuracy {metrics['mean_accuracy']}: {checkpoint.path}")
print(f"latest, from which the run would resume: {result.checkpoint}")
