"""One worker reports files that are all new, and then the same files of which one is new, again and again.

python unchanged.py (holdfast|ray) DIRECTORY NUM_FILES FILE_BYTES REPEATS

Writes `times.json`: for both kinds the seconds until the checkpoint was registered, and the bytes of disk it took.
"""

import json
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


def used_bytes(run):
    """What a run takes of the disk; a file with several names counts once."""
    statuses = [path.lstat() for path in run.rglob("*")] if run.exists() else []
    return sum({status.st_ino: status.st_blocks * 512 for status in statuses}.values())


def loop(config):
    source, copy, run = (Path(config["directory"], name) for name in ("source", "copy", "runs/unchanged"))
    files = sorted(source.iterdir())

    def report():
        registration = shared.Registration(run)
        train.report({"loss": 1.0}, checkpoint=train.Checkpoint.from_directory(str(source)))
        if library == "ray":
            registration.result()

    found = {"first": [], "second": []}
    for _ in range(config["repeats"] + 1):
        for which, changed in (("first", files), ("second", files[:1])):
            for path in changed:
                shared.write_anew(path, path.stat().st_size)
            shared.rest(run)
            shared.warm(source, copy)
            before_bytes = used_bytes(run)
            begin = time.perf_counter()
            report()
            seconds = time.perf_counter() - begin
            found[which].append({"committed_s": seconds, "used_bytes": used_bytes(run) - before_bytes})
    # The first round warms the page cache and the process.
    result = {which: samples[1:] for which, samples in found.items()}
    Path(config["directory"], "times.json").write_text(json.dumps(result))


shared.write_files(directory / "source", num_files, file_bytes)

DataParallelTrainer(
    loop,
    train_loop_config={"directory": str(directory), "repeats": repeats},
    scaling_config=train.ScalingConfig(num_workers=1),
    # All are kept: a deletion beside a report would give back bytes that the report takes.
    run_config=train.RunConfig(name="unchanged", storage_path=str(directory / "runs")),
).fit()
