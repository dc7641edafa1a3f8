"""One worker reports, in SYNC mode, files that it wrote where the library wants them, and `cp` copies the same bytes, in turns.

python staged.py (holdfast|ray) DIRECTORY FILE_BYTES REPEATS

Holdfast has a directory for that, `staging_directory()`; Ray Train gets one on the same file system.
Writes `times.json`: seconds until the checkpoint was registered, and a copy by `cp --reflink=never`.
"""

import functools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import shared

library, directory = sys.argv[1], Path(sys.argv[2])
file_bytes, repeats = (int(text) for text in sys.argv[3:5])

if library == "ray":
    import ray
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(directory / "ray"))
    staging = functools.partial(tempfile.TemporaryDirectory, dir=directory)
else:
    import holdfast as train
    from holdfast import DataParallelTrainer

    staging = train.staging_directory


def loop(config):
    source, copy, run = (Path(config["directory"], name) for name in ("source", "copy", "runs/staged"))

    def cp(staged):
        shared.copy_all(source, copy)

    def report(staged):
        registration = shared.Registration(run)
        train.report({"loss": 1.0}, checkpoint=train.Checkpoint.from_directory(str(staged)))
        if library == "ray":
            registration.result()

    times = {cp: [], report: []}
    for round_number in range(config["repeats"] + 1):
        for action in (cp, report) if round_number % 2 else (report, cp):
            shared.change(source)
            with staging() as staged:
                shared.copy_all(source, Path(staged, "files"))
                shared.rest(run)
                shared.warm(source, copy)
                begin = time.perf_counter()
                action(staged)
                times[action].append(time.perf_counter() - begin)
            shutil.rmtree(copy, ignore_errors=True)
    result = {"committed_s": times[report][1:], "cp_s": times[cp][1:]}
    Path(config["directory"], "times.json").write_text(json.dumps(result))


shared.write_files(directory / "source", 1, file_bytes)

DataParallelTrainer(
    loop,
    train_loop_config={"directory": str(directory), "repeats": repeats},
    scaling_config=train.ScalingConfig(num_workers=1),
    run_config=train.RunConfig(
        name="staged",
        storage_path=str(directory / "runs"),
        checkpoint_config=train.CheckpointConfig(num_to_keep=1),
    ),
).fit()
