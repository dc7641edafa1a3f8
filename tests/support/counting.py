"""A job of two ranks that counts through checkpoints, and dies on the way; as a program, its driver dies, too."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import holdfast as train
from holdfast import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    DataParallelTrainer,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
)  # fmt: skip

SHARD_BYTES = 10_000
LARGE_BYTES = 17 << 20
_LIMIT_S = 120.0


def count(config: Mapping[str, Any]) -> None:
    """Counts to `steps`, with asynchronous reports.

    In the first attempt of all, rank 1 is killed at step 3. With a `driver`, that process is killed at step 5, when what was
    reported before is committed.
    """
    rank = train.get_context().get_world_rank()
    first = 0
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            first = json.loads(Path(directory, "state.json").read_text())["step"] + 1
            assert Path(directory, "shards", "of rank 1.bin").stat().st_size == SHARD_BYTES
            assert Path(directory, "large").read_bytes() == large(first - 1)
    for step in range(first, config["steps"]):
        if rank == 1 and step == 3 and checkpoint is None:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 5 and config.get("driver"):
            os.kill(config["driver"], signal.SIGKILL)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "shards").mkdir()
            Path(directory, "shards", f"of rank {rank}.bin").write_bytes(os.urandom(SHARD_BYTES))
            if rank == 0:
                Path(directory, "state.json").write_text(json.dumps({"step": step}))
                Path(directory, "large").write_bytes(large(step))
            pending = train.report(
                {"step": step, "first": first},
                Checkpoint.from_directory(directory),
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            )
        if step == 4 and config.get("driver"):
            pending.result(_LIMIT_S)


def large(step: int) -> bytes:
    """What goes up in parts."""
    return bytes([step]) * LARGE_BYTES


def fit(url: str, steps: int, *, driver: int | None = None) -> Result:
    """Drives the job."""
    return DataParallelTrainer(
        count,
        train_loop_config={"steps": steps, "driver": driver},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run",
            storage_path=url,
            progress="quiet",
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="step"),
        ),
    ).fit()


if __name__ == "__main__":
    fit(sys.argv[1], int(sys.argv[2]), driver=os.getpid())
