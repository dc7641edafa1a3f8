"""Runs that older versions wrote must open, verify and go on, as long as the format's major version is read."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from compat import make_v2
from holdfast.config import CheckpointConfig
from holdfast.result import Result
from holdfast.run import Run
from support.runs import names, open_run, report

_RUNS = Path(__file__).parent / "runs"


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(_RUNS / "v1", tmp_path / "v1", symlinks=True))


@pytest.fixture
def run_2(tmp_path) -> Path:
    path = Path(shutil.copytree(_RUNS / "v2", tmp_path / "v2", symlinks=True))
    (path / make_v2.LARGE).write_bytes(make_v2.weights())
    return path


def test_it_opens_and_says_what_it_said(run: Path) -> None:
    opened = Run(run)
    assert [each.checkpoint.path for each in opened.checkpoints] == [
        str(run / "checkpoint_000002"),
        str(run / "checkpoint_000005"),
    ]
    metrics = opened.checkpoints[1].metrics
    assert (metrics["validation"], metrics["step"]) == ({"loss": 0.125}, 5)
    assert math.isnan(metrics["bad"])
    assert opened.best().metrics["step"] == 5
    assert [each["report"] for each in opened.reports()] == [1, 2, 3, 4, 5]
    assert list(opened.metrics("all")["rank"]) == [0, 0, 0, 0, 1, 0]


def test_it_verifies_and_damage_in_it_is_found(run: Path) -> None:
    assert Run(run).verify() == {}
    (run / "checkpoint_000005" / "an odd%20name").write_bytes(b"y")
    assert len(Run(run).verify()["checkpoint_000005"]) == 1


def test_its_files_metadata_and_links_are_there(run: Path) -> None:
    checkpoint = Result.from_path(run).checkpoint
    assert checkpoint.get_metadata() == {"epoch": 5}
    with checkpoint.as_directory() as directory:
        assert Path(directory, "model.bin").read_bytes() == b"weights of report 5\n" * 3
        assert Path(directory, "latest").read_bytes() == b"0"
        assert Path(directory, "parts", "rank-1").read_bytes() == b"11111"


def test_a_driver_of_today_resumes_it_and_keeps_its_best(run: Path, tmp_path) -> None:
    writer = open_run(run, CheckpointConfig(2, "validation/loss", "min"))
    assert (writer.epoch, writer.first_attempt, writer.first_report) == (3, 3, 6)
    assert writer.latest_valid().name == "checkpoint_000005"
    report(writer, tmp_path, {"f": b""}, {"validation": {"loss": 0.2}})
    writer.close()
    assert names(writer) == ["checkpoint_000005", "checkpoint_000006"]
    assert Result.from_path(run).get_best_checkpoint("validation/loss", "min").path == str(run / "checkpoint_000005")


def test_a_large_file_is_compared_part_by_part(run_2: Path, tmp_path) -> None:
    assert Run(run_2).verify() == {}
    checkpoint = Result.from_path(run_2).checkpoint
    copy = checkpoint.to_directory(tmp_path / "copy")
    assert Path(copy, "weights.bin").read_bytes() == make_v2.weights()
    with (run_2 / make_v2.LARGE).open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"x")
    (damage,) = Run(run_2).verify()["checkpoint_000001"]
    assert damage.startswith("weights.bin: its content changed")


def test_a_driver_of_today_goes_on_with_version_2(run_2: Path, tmp_path) -> None:
    writer = open_run(run_2)
    assert writer.latest_valid().name == "checkpoint_000001"
    report(writer, tmp_path, {"weights.bin": make_v2.weights()})
    writer.close()
    assert Run(run_2).verify() == {}
