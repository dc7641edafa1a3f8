"""One worker reports a checkpoint of much data in SYNC mode, and `cp` copies the same bytes, in turns.

python bulk.py (holdfast|ray) DIRECTORY NUM_FILES FILE_BYTES REPEATS

Writes `times.json`: seconds until `report` returned, until the checkpoint was registered, and a copy by
`cp --reflink=never`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

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
        subprocess.run(["cp", "-r", "--reflink=never", str(source), str(copy)], check=True)

    def rest():
        """Waits until what either library does behind a report (flushing, deleting the one before) is done."""
        os.sync()
        deadline, before = time.monotonic() + 60, None
        while time.monotonic() < deadline:
            written = [line.split()[9] for line in Path("/proc/diskstats").read_text().splitlines()]
            now = written, sorted(path.name for path in run.iterdir()) if run.exists() else []
            if now == before:
                return
            before = now
            time.sleep(0.5)

    def snapshot():
        file = run / "checkpoint_manager_snapshot.json"
        return file.stat().st_mtime_ns if file.exists() else None

    def change():
        """Another checkpoint: what did not change since the last one would be stored once, and cost no copy."""
        for path in source.iterdir():
            with open(path, "r+b") as file:
                file.write(os.urandom(16))

    def report():
        before = snapshot()
        train.report({"loss": 1.0}, checkpoint=train.Checkpoint.from_directory(str(source)))
        returned.append(time.perf_counter())
        # The peer's call returns once the files are copied; the file by which it knows its checkpoints changes later.
        deadline = time.monotonic() + 60
        while library == "ray" and snapshot() == before and time.monotonic() < deadline:
            time.sleep(0.001)

    times = {cp: [], report: []}
    calls, returned = [], []
    for round_number in range(config["repeats"] + 1):
        # Each goes first every other time, on a disk at rest, and into memory that a copy has just been removed from:
        # the first touch of fresh memory costs more than the copying.
        for action in (cp, report) if round_number % 2 else (report, cp):
            change()
            rest()
            cp()
            shutil.rmtree(copy)
            begin = time.perf_counter()
            action()
            times[action].append(time.perf_counter() - begin)
            if action is report:
                calls.append(returned[-1] - begin)
            shutil.rmtree(copy, ignore_errors=True)
    # The first round warms the page cache and the process.
    result = {"call_s": calls[1:], "committed_s": times[report][1:], "cp_s": times[cp][1:]}
    Path(config["directory"], "times.json").write_text(json.dumps(result))


source = directory / "source"
source.mkdir()
block = os.urandom(min(file_bytes, 1 << 20))
for number in range(num_files):
    with open(source / f"part-{number:05d}.bin", "wb") as file:
        for _ in range(file_bytes // len(block)):
            file.write(block)

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
