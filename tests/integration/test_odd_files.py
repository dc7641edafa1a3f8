"""Files that are many, large, oddly named or linked, and disks that are too small for them: all of it survives, or is refused by name."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, DataParallelTrainer, RunConfig, ScalingConfig


def trainer(function, path, **options):
    return DataParallelTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=options.pop("workers", 1), use_gpu=options.pop("use_gpu", False)),
        run_config=RunConfig(name="run", storage_path=path, **{"progress": "quiet", **options}),
    )


NAMES = [b"with space", b"new\nline", b"\xff\xfe not utf-8", "Ünïcode".encode(), b"100%", b"%41", b"-rf", b"a" * 255]


def test_any_name_that_a_file_system_takes_survives(tmp_path):
    names = NAMES

    def loop():
        directory = tempfile.mkdtemp()
        for name in names:
            sub = os.path.join(os.fsencode(directory), name[:100] + b".d")
            os.mkdir(sub)
            for place in (os.fsencode(directory), sub):
                with open(os.path.join(place, name), "wb") as file:
                    file.write(name)
        train.report({}, Checkpoint(directory), delete_local_checkpoint_after_upload=True)

    result = trainer(loop, tmp_path).fit()
    assert result.checkpoint.verify() == []
    copy = os.fsencode(result.checkpoint.to_directory(tmp_path / "copy"))
    for name in names:
        for place in (b"", name[:100] + b".d"):
            with open(os.path.join(copy, place, name), "rb") as file:
                assert file.read() == name


def test_ten_thousand_files(tmp_path):
    def loop():
        with tempfile.TemporaryDirectory() as directory:
            for index in range(10_000):
                Path(directory, f"{index:05d}").write_bytes(b"%d" % index)
            train.report({}, Checkpoint.from_directory(directory))

    result = trainer(loop, tmp_path).fit()
    assert len(result.checkpoint.files()) == 10_000
    assert Path(result.checkpoint.path, "07777").read_bytes() == b"7777"


@pytest.mark.slow
def test_a_file_of_three_gibibytes(tmp_path):
    def loop():
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            with open(os.path.join(directory, "big"), "wb") as file:
                for index in range(3 * 64):
                    file.write(bytes([index]) * (1 << 24))
            train.report({}, Checkpoint.from_directory(directory))

    result = trainer(loop, tmp_path).fit()
    assert result.checkpoint.files()[0].size_bytes == 3 << 30
    assert result.checkpoint.verify() == []


def test_modes_links_and_holes_are_kept(tmp_path):
    def loop():
        directory = Path(tempfile.mkdtemp())
        (directory / "run.sh").write_text("#!/bin/sh\n")
        (directory / "run.sh").chmod(0o750)
        (directory / "link").symlink_to("run.sh")
        (directory / "dangling").symlink_to("not-there")
        with open(directory / "sparse", "wb") as file:
            file.truncate(1 << 30)
            file.seek(1 << 29)
            file.write(b"data")
        train.report({}, Checkpoint(directory))

    path = Path(trainer(loop, tmp_path).fit().checkpoint.path)
    assert (path / "run.sh").stat().st_mode & 0o777 == 0o750
    assert os.readlink(path / "link") == "run.sh"
    assert os.readlink(path / "dangling") == "not-there"
    assert (path / "sparse").stat().st_size == 1 << 30
    assert (path / "sparse").stat().st_blocks * 512 < 1 << 24


def test_a_link_that_leads_out_is_refused_by_name(tmp_path):
    def loop():
        directory = Path(tempfile.mkdtemp())
        (directory / "secret").symlink_to("/etc/passwd")
        train.report({}, Checkpoint(directory))

    with pytest.raises(train.WorkerGroupError) as caught:
        trainer(loop, tmp_path).fit()
    error = caught.value.worker_failures[0]
    assert isinstance(error, train.CheckpointSourceError)
    assert "secret" in str(error)
    assert "/etc/passwd" in str(error)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_fills_up_harms_nothing_that_was_committed(tmp_path, small_disk):
    def loop(config):
        texts = []
        for step, size in enumerate((2, 20, 2)):
            with tempfile.TemporaryDirectory() as directory:
                with open(os.path.join(directory, "model"), "wb") as file:
                    file.write(os.urandom(size << 20))
                try:
                    train.report({"step": step}, Checkpoint.from_directory(directory))
                except train.StorageError as error:
                    texts.append(str(error))
                    train.report({"failed": step})
        return texts

    result = trainer(loop, small_disk).fit()
    lines = train.Run(small_disk / "run").reports()
    assert [line["metrics"] for line in lines] == [{"step": 0}, {"failed": 1}, {"step": 2}]
    assert len(result.best_checkpoints) == 2
    assert "full" in result.return_value[0]
    assert all(problems == [] for problems in train.Run(small_disk / "run").verify().values())
    left = [p.name for p in (small_disk / "run").iterdir()]
    assert not [name for name in left if "partial" in name], left


def test_a_disk_without_space_for_a_report_ends_the_run_with_an_error(small_disk):
    def loop():
        train.report({"a": 1})
        Path(small_disk, "filler").write_bytes(b"")
        with open(small_disk / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        for _ in range(100):
            train.report({"text": "y" * 1000})

    with pytest.raises(train.WorkerGroupError) as caught:
        trainer(loop, small_disk).fit()
    assert isinstance(caught.value.worker_failures[0], train.StorageError)
    (small_disk / "filler").unlink()
    assert train.Run(small_disk / "run").reports()[0]["metrics"] == {"a": 1}
    assert trainer(lambda: train.report({"b": 2}), small_disk).fit().metrics == {"b": 2}
