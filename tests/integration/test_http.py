"""A run that lies behind a web server: its checkpoints can be read, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast as train
from holdfast import (
    Checkpoint,
    DamagedCheckpointError,
    DataParallelTrainer,
    RunConfig,
    StorageAccessError,
    StorageError,
)
from support.http_server import running_http_server
from support.runs import open_run, report

LARGE = os.urandom(20 << 20)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = open_run(tmp_path / "www" / "run")
    report(writer, tmp_path, {"large": LARGE, "deep/er/ü %": b"small", "empty": b""})
    writer.close()
    return tmp_path / "www" / "run"


@pytest.fixture
def root(run: Path) -> Iterator[str]:
    with running_http_server(run.parent) as root:
        yield root


def test_a_checkpoint_is_read_whole_in_part_and_as_a_file(root: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(f"{root}/run/checkpoint_000001")
    with checkpoint.as_directory() as directory:
        assert Path(directory, "large").read_bytes() == LARGE
        assert Path(directory, "deep/er/ü %").read_bytes() == b"small"
        assert Path(directory, "empty").read_bytes() == b""
    with checkpoint.as_directory(include="deep/*") as directory:
        assert not Path(directory, "large").exists()
    with checkpoint.open("large") as file:
        file.seek(15 << 20)
        assert file.read(1000) == LARGE[15 << 20 :][:1000]
    assert checkpoint.verify() == []


def test_what_a_web_server_gives_is_compared_as_everywhere(root: str, run: Path) -> None:
    (run / "checkpoint_000001" / "large").write_bytes(LARGE[:-1] + bytes([LARGE[-1] ^ 1]))
    with (
        pytest.raises(DamagedCheckpointError, match="large"),
        Checkpoint(f"{root}/run/checkpoint_000001").as_directory(),
    ):
        pass


def test_what_is_not_there_is_said(root: str) -> None:
    with pytest.raises(StorageError), Checkpoint(f"{root}/run/checkpoint_000009").as_directory():
        pass


def test_a_run_cannot_be_listed_and_the_error_says_what_can_be_done(root: str) -> None:
    with pytest.raises(StorageError, match="give the URL of a checkpoint"):
        train.Run(f"{root}/run")


def test_no_run_can_be_stored_there(root: str) -> None:
    trainer = DataParallelTrainer(lambda: None, run_config=RunConfig(name="run", storage_path=root, progress="quiet"))
    with pytest.raises(StorageAccessError, match="a web server is for reading"):
        trainer.fit()
