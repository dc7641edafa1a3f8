"""Finds a run's checkpoints once it has ended, also from another program, and loads them.

Run it: python examples/use_checkpoints_after_training.py [--storage DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import holdfast as train


def train_func() -> None:
    for step in range(3):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model.json").write_text(json.dumps({"weight": 0.5 * step}))
            train.report({"step": step, "loss": 1 / (step + 1)}, checkpoint=train.Checkpoint.from_directory(directory))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--storage", help="where runs lie (default: ~/holdfast_results)")
options = parser.parse_args()

trainer = train.DataParallelTrainer(train_func, run_config=train.RunConfig(storage_path=options.storage))
path = trainer.fit().path

# From here on only the path is needed: this part could be another program, on another day.
result = train.Result.from_path(path)
checkpoint = result.checkpoint
assert checkpoint is not None

with checkpoint.as_directory() as directory:  # to look at, without a copy where it lies on a local disk
    print("latest:", json.loads(Path(directory, "model.json").read_text()))

with tempfile.TemporaryDirectory() as mine:  # to keep and to change
    print("copied to:", checkpoint.to_directory(Path(mine, "copy")))

with checkpoint.open("model.json") as file:  # one file, as a stream
    print("streamed:", json.load(file))

best = result.get_best_checkpoint("loss", "min")
print("lowest loss:", best)

run = train.Run(path)
print("every report:", [report["metrics"] for report in run.reports()])
damaged = [name for name, problems in run.verify().items() if problems]
print("damaged checkpoints:", damaged or "none")
