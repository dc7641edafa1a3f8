"""One worker reports a checkpoint of much data in SYNC mode, and `cp` copies the same bytes, in turns.

python bulk.py (holdfast|ray) DIRECTORY NUM_FILES FILE_BYTES REPEATS

Writes `times.json`: seconds until `report` returned, until the checkpoint was registered, and a copy by
`cp --reflink=never`.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import shared

library, directory = sys.argv[1], Path(sys.argv[2])
num_files, file_bytes, repeats = (int(text) for text in sys.argv[3:6])

if library == "ray":
    import ray
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(directory / "ray"))
else:
    import holdfast as train
    from holdfast import DataParallelTrainer


def loop(config):
    source, copy, run = (Path(config["directory"], name) for name in ("source", "copy", "runs/bulk"))

    def cp():
        shared.copy_all(source, copy)

    def report():
        registration = shared.Registration(run)
        train.report({"loss": 1.0}, checkpoint=train.Checkpoint.from_directory(str(source)))
        returned.append(time.perf_counter())
        if library == "ray":
            registration.result()

    times = {cp: [], report: []}
    calls, returned = [], []
    for round_number in range(config["repeats"] + 1):
        # Each goes first every other time, on a disk at rest, and into warm memory.
        for action in (cp, report) if round_number % 2 else (report, cp):
            shared.change(source)
            shared.rest(run)
            shared.warm(source, copy)
            begin = time.perf_counter()
            action()
            times[action].append(time.perf_counter() - begin)
            if action is report:
                calls.append(returned[-1] - begin)
            shutil.rmtree(copy, ignore_errors=True)
    # The first round warms the page cache and the process.
    result = {"call_s": calls[1:], "committed_s": times[report][1:], "cp_s": times[cp][1:]}
    Path(config["directory"], "times.json").write_text(json.dumps(result))


shared.write_files(directory / "source", num_files, file_bytes)

DataParallelTrainer(
    loop,
    train_loop_config={"directory": str(directory), "repeats": repeats},
    scaling_config=train.ScalingConfig(num_workers=1),
    run_config=train.RunConfig(
        name="bulk",
        storage_path=str(directory / "runs"),
        checkpoint_config=train.CheckpointConfig(num_to_keep=1),
    ),
).fit()
