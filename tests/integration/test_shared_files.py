"""Files that did not change since the checkpoint before are stored once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointConfig, CheckpointUploadMode, DataParallelTrainer, RunConfig

FROZEN = random.Random(0).randbytes(1 << 20)  # the same in each process


def run(function, base, **options):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": base},
        run_config=RunConfig(name="run", storage_path=base, **{"progress": "quiet", **options}),
    ).fit()


def report_model(step, frozen=FROZEN, mode=CheckpointUploadMode.SYNC, staging=False):
    with train.staging_directory() if staging else tempfile.TemporaryDirectory() as directory:
        Path(directory, "frozen.bin").write_bytes(frozen)
        Path(directory, "head.bin").write_bytes(bytes([step]) * 100_000)
        Path(directory, "step").write_text(str(step))
        return train.report({"step": step}, Checkpoint(directory), checkpoint_upload_mode=mode)


def inodes(base, name):
    return [(each.checkpoint.path, os.stat(f"{each.checkpoint.path}/{name}").st_ino) for each in checkpoints(base)]


def checkpoints(base):
    return train.Run(base / "run").checkpoints


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
@pytest.mark.parametrize("staging", [False, True])
def test_an_unchanged_file_is_stored_once(tmp_path, mode, staging):
    def loop(config):
        for step in range(3):
            report_model(step, mode=CheckpointUploadMode(mode), staging=staging).result(30)

    result = run(loop, tmp_path)
    assert len({inode for _, inode in inodes(tmp_path, "frozen.bin")}) == 1
    assert len({inode for _, inode in inodes(tmp_path, "head.bin")}) == 3
    assert all(problems == [] for problems in train.Run(tmp_path / "run").verify().values())
    with result.checkpoint.as_directory() as directory:
        assert Path(directory, "frozen.bin").read_bytes() == FROZEN


def test_a_change_that_samples_do_not_show_is_stored(tmp_path):
    changed = bytearray(FROZEN)
    changed[300_000] ^= 1

    def loop(config):
        report_model(0)
        report_model(1, bytes(changed))

    run(loop, tmp_path)
    assert len({inode for _, inode in inodes(tmp_path, "frozen.bin")}) == 2
    assert (Path(checkpoints(tmp_path)[1].checkpoint.path) / "frozen.bin").read_bytes() == bytes(changed)
    assert all(problems == [] for problems in train.Run(tmp_path / "run").verify().values())


def test_a_stored_file_that_somebody_changed_is_not_shared(tmp_path):
    def loop(config):
        first = report_model(0).result()
        with open(f"{first.path}/frozen.bin", "r+b") as file:
            file.seek(500_000)
            file.write(b"damage")
        report_model(1)

    run(loop, tmp_path)
    assert checkpoints(tmp_path)[1].checkpoint.verify() == []


def test_retention_takes_nothing_from_those_that_are_kept(tmp_path):
    def loop(config):
        for step in range(5):
            report_model(step)

    result = run(loop, tmp_path, checkpoint_config=CheckpointConfig(num_to_keep=1))
    assert [each.metrics["step"] for each in checkpoints(tmp_path)] == [4]
    assert result.checkpoint.verify() == []
    assert os.stat(f"{result.checkpoint.path}/frozen.bin").st_nlink == 1


def test_a_restart_goes_on_sharing_and_does_not_read_what_nobody_touched(tmp_path):
    def loop(config):
        step = len(checkpoints(config["base"]))
        report_model(step)
        if step < 2:
            os.kill(os.getpid(), signal.SIGKILL)

    run(loop, tmp_path, failure_config=train.FailureConfig(max_failures=2))
    run(loop, tmp_path)  # another driver, which has verified the newest
    found = inodes(tmp_path, "frozen.bin")
    assert len(found) == 4
    assert len({inode for _, inode in found}) == 1


@pytest.fixture(params=["xfs", "btrfs"])
def reflinking_disk(request, tmp_path):
    """A file system whose files can share blocks, in a file of its own."""
    kind = request.param
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed: apt-get install {'xfsprogs' if kind == 'xfs' else 'btrfs-progs'}")
    image, path = tmp_path / "image", tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    path.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no {kind} can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_where_the_file_system_can_a_copy_shares_the_blocks(reflinking_disk):
    source = reflinking_disk / "source"
    source.mkdir()
    data = os.urandom(100 << 20)
    (source / "model").write_bytes(data)
    os.truncate(source / "model", (100 << 20) + 5)
    os.sync()
    before = shutil.disk_usage(reflinking_disk).used

    def loop(config):
        train.report({}, Checkpoint(str(config["base"] / "source")))

    result = run(loop, reflinking_disk)
    os.sync()
    assert shutil.disk_usage(reflinking_disk).used - before < 20 << 20
    assert result.checkpoint.verify() == []
    (source / "model").write_bytes(b"changed")
    assert (Path(result.checkpoint.path) / "model").read_bytes() == data + bytes(5)
