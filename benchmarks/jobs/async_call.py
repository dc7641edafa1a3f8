"""One worker reports checkpoints of several sizes in ASYNC mode, each when the one before is committed.

python async_call.py (holdfast|ray) DIRECTORY NUM_FILES:FILE_BYTES:REPEATS ...

Writes `times.json`: for each size the seconds until `report` returned, in order.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import shared

library, directory = sys.argv[1], Path(sys.argv[2])
sizes = [[int(number) for number in text.split(":")] for text in sys.argv[3:]]

if library == "ray":
    import ray
    from ray import train
    from ray.train import CheckpointUploadMode
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(directory / "ray"))
else:
    import holdfast as train
    from holdfast import CheckpointUploadMode, DataParallelTrainer


def loop(config):
    run = Path(config["directory"], "runs/calls")

    def report(source):
        registration = shared.Registration(run)
        checkpoint = train.Checkpoint.from_directory(str(source))
        # As the step before in a training loop; after a second of nothing, the machine needs milliseconds to be awake.
        train.report({"loss": 1.0})
        begin = time.perf_counter()
        pending = train.report(
            {"loss": 1.0},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # it is reported again
        )
        call_s = time.perf_counter() - begin
        (registration if library == "ray" else pending).result()
        return call_s

    times = []
    for number, (num_files, file_bytes, repeats) in enumerate(config["sizes"]):
        source = Path(config["directory"], f"source-{number}")
        shared.write_files(source, num_files, file_bytes)
        calls = []
        for _ in range(repeats + 1):
            shared.change(source)
            shared.rest(run)
            calls.append(report(source))
        # The first warms the process.
        times.append(calls[1:])
        shutil.rmtree(source)
    Path(config["directory"], "times.json").write_text(json.dumps(times))


DataParallelTrainer(
    loop,
    train_loop_config={"directory": str(directory), "sizes": sizes},
    scaling_config=train.ScalingConfig(num_workers=1),
    run_config=train.RunConfig(
        name="calls",
        storage_path=str(directory / "runs"),
        checkpoint_config=train.CheckpointConfig(num_to_keep=1),
    ),
).fit()
