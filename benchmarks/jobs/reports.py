"""Two workers that report as fast as they can, with or without a small checkpoint.

python reports.py (holdfast|ray) DIRECTORY NUM_REPORTS (none|keep2|keepall)

Writes `times.json`: rank 0's seconds a report, in order.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

library, directory, num_reports, checkpoints = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

if library == "ray":
    import ray
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(directory / "ray"))
else:
    import holdfast as train
    from holdfast import DataParallelTrainer


def loop(config):
    rank = train.get_context().get_world_rank()
    times = []
    with tempfile.TemporaryDirectory(dir=config["directory"]) as source:
        Path(source, "model.bin").write_bytes(b"x" * 1024)
        with_checkpoint = config["checkpoints"] and rank == 0
        for step in range(config["num_reports"]):
            begin = time.perf_counter()
            train.report(
                {"loss": 1.0 / (step + 1), "step": step},
                checkpoint=train.Checkpoint.from_directory(source) if with_checkpoint else None,
            )
            times.append(time.perf_counter() - begin)
    if rank == 0:
        Path(config["directory"], "times.json").write_text(json.dumps(times))


DataParallelTrainer(
    loop,
    train_loop_config={
        "directory": str(directory),
        "num_reports": num_reports,
        "checkpoints": checkpoints != "none",
    },
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(
        name="reports",
        storage_path=str(directory / "runs"),
        checkpoint_config=train.CheckpointConfig(num_to_keep=2 if checkpoints == "keep2" else None),
    ),
).fit()
