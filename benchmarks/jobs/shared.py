"""What several jobs do, in whichever environment they run: files to report, a disk at rest, warm memory, `cp`."""

import os
import shutil
import subprocess
import time
from pathlib import Path

_REST_S = 30.0
_REGISTERED_S = 300.0


def write_files(directory, num_files, file_bytes):
    """Makes a directory of files without holes."""
    directory.mkdir()
    for number in range(num_files):
        write_anew(directory / f"part-{number:05d}.bin", file_bytes)


def write_anew(path, size_bytes):
    """Writes a file with nothing in it that was there before."""
    block = os.urandom(min(size_bytes, 1 << 20))
    with open(path, "wb") as file:
        for _ in range(size_bytes // len(block)):
            file.write(block)


def change(source):
    """Makes another checkpoint of it: what did not change since the last one would be stored once, and cost no copy."""
    for path in source.iterdir():
        with open(path, "r+b") as file:
            file.write(os.urandom(16))


def cp(source, copy):
    """Starts to copy a directory, sharing nothing."""
    return subprocess.Popen(["cp", "-r", "--reflink=never", str(source), str(copy)])


def copy_all(source, copy):
    """Copies a directory by `cp`.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    process = cp(source, copy)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)


def warm(source, copy):
    """Leaves free memory that a copy has just been removed from: the first touch of fresh memory costs more than copying."""
    copy_all(source, copy)
    shutil.rmtree(copy)


def rest(run):
    """Waits until what a library does behind a checkpoint (flushing, deleting the one before) is done."""
    os.sync()
    deadline, before = time.monotonic() + _REST_S, None
    while time.monotonic() < deadline:
        written = [line.split()[9] for line in Path("/proc/diskstats").read_text().splitlines()]
        now = written, sorted(path.name for path in run.iterdir()) if run.exists() else []
        if now == before:
            return
        before = now
        time.sleep(0.5)


class Registration:
    """When Ray Train has registered a checkpoint: then the file by which it knows its checkpoints is another.

    Its `report` returns before that.
    """

    def __init__(self, run):
        self._file = run / "checkpoint_manager_snapshot.json"
        self._before = self._now()

    def _now(self):
        return self._file.stat().st_mtime_ns if self._file.exists() else None

    def done(self):
        """Whether it has come since this object was made."""
        return self._now() != self._before

    def result(self):
        """Waits for it.

        Raises:
            TimeoutError: It does not come.
        """
        deadline = time.monotonic() + _REGISTERED_S
        while not self.done():
            if time.monotonic() > deadline:
                raise TimeoutError("the checkpoint was not registered")
            time.sleep(0.001)
