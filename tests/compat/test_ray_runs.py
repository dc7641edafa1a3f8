"""Runs that Ray Train wrote open as ours do, with what they say; what they do not say is not made up, and nothing is written to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from holdfast.checkpoint import Checkpoint
from holdfast.config import RunConfig, ScalingConfig
from holdfast.errors import ConfigurationError, FormatError, RunNotFoundError
from holdfast.persistence import ray_snapshot
from holdfast.persistence.ray_snapshot import SNAPSHOT
from holdfast.reported import CheckpointStatus
from holdfast.result import Result
from holdfast.run import Run
from holdfast.trainer import DataParallelTrainer

_RUNS = Path(__file__).parent / "ray"
# By their steps.
_STEP_1 = "checkpoint_2026-11-26_03-56-22.055885"
_STEP_3 = "checkpoint_2026-11-26_03-56-30.306322"
_STEP_4 = "checkpoint_2026-11-26_03-56-34.348224"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(_RUNS / "run", tmp_path / "runs" / "run"))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_snapshot, "_PAUSE_S", 0.01)


def _state(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in root.rglob("*")
    }


def _change(run: Path, **fields: object) -> None:
    found = json.loads((run / SNAPSHOT).read_text())
    (run / SNAPSHOT).write_text(json.dumps({**found, **fields}))


def test_its_checkpoints_are_there_oldest_first_with_their_metrics(run: Path) -> None:
    opened = Run(run)
    assert opened.name == "run"
    assert [each.checkpoint.path for each in opened.checkpoints] == [
        str(run / name) for name in (_STEP_1, _STEP_3, _STEP_4)
    ]
    assert [each.metrics["step"] for each in opened.checkpoints] == [1, 3, 4]
    assert {each.status for each in opened.checkpoints} == {CheckpointStatus.COMMITTED}
    latest = opened.latest
    assert latest.metrics == {"step": 4, "val": {"loss": 1.0}, "bad": None}
    with latest.checkpoint.as_directory() as directory:
        assert Path(directory, "rank-1.txt").read_text() == "step 4 of rank 1\n"
    assert latest.checkpoint.get_metadata() == {"step": 4}
    assert sorted(file.path for file in latest.checkpoint.files()) == ["rank-0.txt", "rank-1.txt"]


def test_the_best_is_what_it_ranked_best_or_what_is_asked(run: Path) -> None:
    opened = Run(run)
    assert opened.best().metrics["step"] == 3
    assert opened.best("val/loss", "max").metrics["step"] == 4
    assert opened.best("val/loss", "min").metrics["step"] == 3
    with pytest.raises(ConfigurationError, match="say what is better"):
        opened.best("val/loss")
    with pytest.raises(ConfigurationError, match=r"'reward'.*step, val/loss"):
        opened.best("reward", "max")


def test_its_result_is_that_of_its_own_library(run: Path) -> None:
    result = Result.from_path(run)
    assert result.path == str(run)
    assert result.metrics == {"step": 4, "val": {"loss": 1.0}, "bad": None}
    assert result.checkpoint == Checkpoint(run / _STEP_4)
    assert [checkpoint.path for checkpoint, _ in result.best_checkpoints] == [
        str(run / name) for name in (_STEP_4, _STEP_1, _STEP_3)
    ]
    assert result.get_best_checkpoint("val/loss", "min").path == str(run / _STEP_3)
    assert list(result.metrics_dataframe["val/loss"]) == [0.25, 0.125, 1.0]


def test_what_it_does_not_say_is_not_made_up(run: Path) -> None:
    opened = Run(run)
    assert opened.driver is None
    assert [(each["report"], each["checkpoint"]) for each in opened.reports()] == [
        (2, _STEP_1),
        (6, _STEP_3),
        (8, _STEP_4),
    ]
    assert {(each["attempt"], each["time"]) for each in opened.reports()} == {(None, None)}
    assert opened.metrics()["time"].isna().all()
    assert set(opened.verify()) == {_STEP_1, _STEP_3, _STEP_4}
    assert all("no digests" in problem for (problem,) in opened.verify().values())


def test_nothing_is_written_to_it(run: Path) -> None:
    before = _state(run)
    opened = Run(run)
    for look in (opened.reports, opened.metrics, opened.verify, opened.best):
        look()
    assert (opened.latest, opened.driver) != (None, "somebody")
    Result.from_path(run).checkpoint.to_directory(run.parent / "copy")
    with pytest.raises(ConfigurationError, match="resume_from="):
        DataParallelTrainer(
            print,
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RunConfig(name="run", storage_path=run.parent, progress="quiet"),
        ).fit()
    assert _state(run) == before


def test_one_that_was_killed_has_what_was_registered() -> None:
    opened = Run(_RUNS / "killed")
    assert [each.metrics["step"] for each in opened.checkpoints] == [0, 1]
    assert Result.from_path(_RUNS / "killed").metrics["step"] == 1


def test_validations_keep_their_outcome(run: Path) -> None:
    found = json.loads((run / SNAPSHOT).read_text())
    _change(
        run,
        validated_checkpoint_dir_names=[_STEP_1],
        failed_validation_checkpoint_dir_names=[_STEP_3],
        pending_training_results=[found["latest_checkpoint_result"]],
        pending_validation_specs=[True],
    )
    assert [each.status for each in Run(run).checkpoints] == [
        CheckpointStatus.VALIDATED,
        CheckpointStatus.VALIDATION_FAILED,
        CheckpointStatus.PENDING_VALIDATION,
    ]
    _change(run, validated_checkpoint_dir_names=[], timed_out_validation_checkpoint_dir_names=[_STEP_1])
    assert Run(run).checkpoints[0].status is CheckpointStatus.VALIDATION_TIMEOUT


def test_checkpoints_that_are_gone_are_left_out_and_told_of(run: Path) -> None:
    shutil.rmtree(run / _STEP_4)
    opened = Run(run)
    assert [each.metrics["step"] for each in opened.checkpoints] == [1, 3]
    assert opened.latest.metrics["step"] == 3
    assert "gone" in opened.verify()[_STEP_4][0]
    assert len(opened.reports()) == 3


def test_a_torn_snapshot_is_read_again_and_then_said_to_be_torn(run: Path) -> None:
    whole = (run / SNAPSHOT).read_text()
    for torn in ("", whole[:100]):
        (run / SNAPSHOT).write_text(torn)
        with pytest.raises(FormatError, match=rf"torn.*killed.*{_STEP_4}.*resume_from=path"):
            Run(run).checkpoints  # noqa: B018


def test_a_snapshot_that_is_not_known_is_refused_by_name(run: Path) -> None:
    found = json.loads((run / SNAPSHOT).read_text())
    newer = [{**each, "version": 1} for each in found["checkpoint_results"]]
    for fields, what in (
        ({"checkpoint_results": newer}, "version 1.*upgrade"),
        ({"checkpoint_results": {}}, "no snapshot.*known here.*checkpoint_results"),
        ({"checkpoint_report_indices": [1]}, "3 checkpoints of 1 reports"),
        ({"checkpoint_results": [{"checkpoint_dir_name": "../elsewhere"}], "checkpoint_report_indices": [0]}, "inside"),
        ({"checkpoint_results": [{"checkpoint_dir_name": "/etc"}], "checkpoint_report_indices": [0]}, "inside"),
        (
            {
                "checkpoint_results": [{"checkpoint_dir_name": _STEP_1, "metrics": {"n": 2**70}}],
                "checkpoint_report_indices": [0],
            },
            "64 bits",
        ),
    ):
        (run / SNAPSHOT).write_text(json.dumps({**found, **fields}))
        with pytest.raises(FormatError, match=what):
            Run(run).checkpoints  # noqa: B018
    (run / SNAPSHOT).write_text("[]")
    with pytest.raises(FormatError, match="no snapshot"):
        Run(run).checkpoints  # noqa: B018


def test_without_report_indices_the_names_or_the_latest_tell_the_order(run: Path) -> None:
    _change(run, checkpoint_report_indices=None)
    assert [each.metrics["step"] for each in Run(run).checkpoints] == [1, 3, 4]
    (run / _STEP_3).rename(run / "named")
    found = json.loads((run / SNAPSHOT).read_text())
    found["checkpoint_results"][2]["checkpoint_dir_name"] = "named"
    (run / SNAPSHOT).write_text(json.dumps(found))
    assert Run(run).latest.metrics["step"] == 4


def test_numbers_that_json_has_not_come_through(run: Path) -> None:
    text = (run / SNAPSHOT).read_text()
    (run / SNAPSHOT).write_text(text.replace("0.125", "NaN").replace("1.0", "Infinity"))
    assert Run(run).best("val/loss", "max").metrics["step"] == 4
    assert Run(run).best("val/loss", "min").metrics["step"] == 1


def test_what_lies_around_it_is_told_apart(run: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"directory of runs.*: run"):
        Run(run.parent)
    (run / SNAPSHOT).unlink()
    with pytest.raises(RunNotFoundError, match="holds no run"):
        Run(run)
    (run / "result.json").touch()
    with pytest.raises(RunNotFoundError, match="Ray Tune"):
        Run(run)


def test_one_in_a_file_system_of_fsspec_opens(run: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    memory = fsspec.filesystem("memory")
    memory.put(str(run), "/ray-runs/run", recursive=True)
    try:
        opened = Run("/ray-runs/run", memory)
        assert [each.metrics["step"] for each in opened.checkpoints] == [1, 3, 4]
        with opened.latest.checkpoint.as_directory() as directory:
            assert Path(directory, "rank-0.txt").read_text() == "step 4 of rank 0\n"
        assert Result.from_path("memory://ray-runs/run").metrics["step"] == 4
    finally:
        memory.rm("/ray-runs", recursive=True)
