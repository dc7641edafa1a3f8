"""Two workers without torch; `fit()` twice in one process where asked for.

python plain_start.py (holdfast|ray) DIRECTORY RUNS

Writes `times.json`: for each `fit()` the seconds to the function's first line and to its return.
"""

import json
import sys
import time
from pathlib import Path

library, directory, num_runs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

if library == "ray":
    import ray
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(directory / "ray"))
else:
    import holdfast as train
    from holdfast import DataParallelTrainer


def first_line(config):
    now = time.monotonic()
    if train.get_context().get_world_rank() == 0:
        Path(config["first"]).write_text(repr(now))
    train.report({"loss": 1.0})


times = []
for run in range(num_runs):
    first = directory / f"first-{run}"
    begin = time.monotonic()
    DataParallelTrainer(
        first_line,
        train_loop_config={"first": str(first)},
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(name=f"plain-{run}", storage_path=str(directory / "runs")),
    ).fit()
    times.append({"first_line_s": float(first.read_text()) - begin, "fit_s": time.monotonic() - begin})
(directory / "times.json").write_text(json.dumps(times))
