"""One worker trains while a checkpoint of files that it reported is stored, and while `cp` copies the same files, in turns.

python beside.py (holdfast|ray) DIRECTORY NUM_FILES FILE_BYTES REPEATS

Writes `times.json`: for both, what `steps.Training.beside` found.
"""

import json
import shutil
import sys
from pathlib import Path

import shared
import steps

library, directory = sys.argv[1], Path(sys.argv[2])
num_files, file_bytes, repeats = (int(text) for text in sys.argv[3:6])

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
    source, copy, run = (Path(config["directory"], name) for name in ("source", "copy", "runs/beside"))
    training = steps.Training()

    def rest():
        shared.rest(run)

    def beside_cp():
        started = []
        return training.beside(
            lambda: started.append(shared.cp(source, copy)), lambda: started[0].poll() is not None, rest=rest
        )

    def beside_report():
        started = []
        registration = shared.Registration(run)

        def report():
            pending = train.report(
                {"loss": 1.0},
                checkpoint=train.Checkpoint.from_directory(str(source)),
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                delete_local_checkpoint_after_upload=False,  # it is reported again
            )
            started.append(registration if library == "ray" else pending)

        def last_write():
            return max(path.stat().st_mtime for path in run.glob("checkpoint_*/*.bin"))

        # The peer registers a checkpoint up to seconds after its last byte; nothing is copied beside those steps.
        ended = last_write if library == "ray" else None
        return training.beside(report, lambda: started[0].done(), ended=ended, rest=rest)

    found = {beside_cp: [], beside_report: []}
    for round_number in range(config["repeats"]):
        for action in (beside_cp, beside_report) if round_number % 2 else (beside_report, beside_cp):
            shared.change(source)
            shared.rest(run)
            shared.warm(source, copy)
            found[action].append(action())
            shutil.rmtree(copy, ignore_errors=True)
    result = {"cp": found[beside_cp], "report": found[beside_report]}
    Path(config["directory"], "times.json").write_text(json.dumps(result))


shared.write_files(directory / "source", num_files, file_bytes)

DataParallelTrainer(
    loop,
    train_loop_config={"directory": str(directory), "repeats": repeats},
    scaling_config=train.ScalingConfig(num_workers=1),
    run_config=train.RunConfig(
        name="beside",
        storage_path=str(directory / "runs"),
        checkpoint_config=train.CheckpointConfig(num_to_keep=1),
    ),
).fit()
