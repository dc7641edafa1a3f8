"""Makes `ray/run`, the frozen run of Ray Train 2.60; kept to show how it came to be, never to be run over it again.

`ray/killed` is what the same program left when it was killed between storing the third checkpoint and registering it.

RAY_TRAIN_V2_ENABLED=1 python tests/compat/make_ray.py tests/compat/ray, where `ray[train]==2.60.0` is installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import ray
from ray import train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# The third is not among the best two of the first four, and goes; the last is not, and stays for being the latest.
LOSSES = (0.5, 0.25, 0.75, 0.125, 1.0)


def loop() -> None:
    """Two ranks, each with a file of its own."""
    rank = train.get_context().get_world_rank()
    for step, loss in enumerate(LOSSES):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, f"rank-{rank}.txt").write_text(f"step {step} of rank {rank}\n")
            checkpoint = train.Checkpoint.from_directory(directory)
            if rank == 0:
                checkpoint.set_metadata({"step": step})
            train.report({"step": step, "val": {"loss": loss}, "bad": float("nan")}, checkpoint=checkpoint)
        train.report({"between": step})


def main() -> None:
    """One run, with the best two kept."""
    target = Path(sys.argv[1]).absolute()
    if (target / "run").exists():
        raise SystemExit(f"{target / 'run'} is there already, and frozen")
    with tempfile.TemporaryDirectory() as scratch:
        ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=f"{scratch}/ray", num_cpus=2)
        DataParallelTrainer(
            loop,
            scaling_config=train.ScalingConfig(num_workers=2),
            run_config=train.RunConfig(
                name="run",
                storage_path=str(target),
                checkpoint_config=train.CheckpointConfig(
                    num_to_keep=2, checkpoint_score_attribute="val/loss", checkpoint_score_order="min"
                ),
            ),
        ).fit()
        ray.shutdown()


if __name__ == "__main__":
    main()
