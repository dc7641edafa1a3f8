import os  # completed: the import
import tempfile

from ray import train
from ray.train import Checkpoint  # completed: the import


def train_fn(config):
    ...

    metrics = {"loss": 0.5}  # completed
    with tempfile.TemporaryDirectory() as temp_checkpoint_dir:
        checkpoint = None

        # Only the global rank 0 worker saves and reports the checkpoint
        if train.get_context().get_world_rank() == 0:
            # Save checkpoint to temp_checkpoint_dir
            open(os.path.join(temp_checkpoint_dir, "model.pt"), "w").write("weights")  # completed

            checkpoint = Checkpoint.from_directory(temp_checkpoint_dir)  # completed: `tmpdir` was never defined

        train.report(metrics, checkpoint=checkpoint)
