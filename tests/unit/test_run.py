from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from holdfast.checkpoint import Checkpoint
from holdfast.config import CheckpointConfig
from holdfast.errors import ConfigurationError, RunNotFoundError
from holdfast.metrics import encode_metrics
from holdfast.persistence import layout
from holdfast.reported import CheckpointStatus
from holdfast.run import Run
from support.runs import open_run, report

_BY_LOSS = CheckpointConfig(2, "loss", "min")


def _fill(run, tmp_path, config=_BY_LOSS) -> None:
    writer = open_run(run, config)
    for loss in (3.0, 1.0, 2.0, 5.0):
        report(writer, tmp_path, {"f": b"%f" % loss}, {"loss": loss, "nested": {"size": -loss}})
    writer.log_report(
        report=5, checkpoint=None, metrics=b'{"time":7}', other_ranks=[encode_metrics({"loss": float("nan")})]
    )
    writer.close()


def test_checkpoints_are_oldest_first_with_metrics_and_status(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path)
    run = Run(tmp_path / "run")
    assert [each.metrics["loss"] for each in run.checkpoints] == [1.0, 2.0, 5.0]
    assert {each.status for each in run.checkpoints} == {CheckpointStatus.COMMITTED}
    latest = run.latest
    assert latest is not None
    assert latest.checkpoint.path == str(tmp_path / "run" / "checkpoint_000004")
    with latest.checkpoint.as_directory() as directory:
        assert Path(directory, "f").read_bytes() == b"5.000000"
    assert (run.name, run.path) == ("run", str(tmp_path / "run"))
    assert "run" in repr(run)


def test_best_goes_by_the_runs_own_score_or_by_what_is_asked(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path)
    run = Run(tmp_path / "run")
    assert run.best().metrics["loss"] == 1.0
    assert run.best("loss").metrics["loss"] == 1.0
    assert run.best("loss", "max").metrics["loss"] == 5.0
    assert run.best("nested/size", "min").metrics["loss"] == 5.0
    with pytest.raises(ConfigurationError, match="mode='max' or mode='min'"):
        run.best("nested/size")
    with pytest.raises(ConfigurationError, match=r"'reward'.*loss, nested/size"):
        run.best("reward", "max")
    with pytest.raises(ConfigurationError, match="'best'"):
        run.best("loss", "best")


def test_without_a_score_the_best_is_the_latest(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path, CheckpointConfig(2))
    assert Run(tmp_path / "run").best().metrics["loss"] == 5.0


def test_reports_hold_every_report_of_every_attempt(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path)
    again = open_run(tmp_path / "run", _BY_LOSS)
    report(again, tmp_path, {"f": b"6"}, {"loss": 0.0})
    reports = Run(tmp_path / "run").reports()
    again.close()
    assert [each["report"] for each in reports] == [1, 2, 3, 4, 5, 6]
    assert [each["attempt"] for each in reports] == [1, 1, 1, 1, 1, 2]
    assert reports[0]["checkpoint"] == "checkpoint_000001"
    assert reports[4] == {
        "report": 5,
        "attempt": 1,
        "time": reports[4]["time"],
        "checkpoint": None,
        "metrics": {"time": 7},
    }


def test_metrics_are_a_table_of_every_report(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path)
    frame = Run(tmp_path / "run").metrics()
    assert list(frame["report_index"]) == [1, 2, 3, 4, 5]
    assert list(frame["nested/size"])[:4] == [-3.0, -1.0, -2.0, -5.0]
    assert frame["time"].is_monotonic_increasing  # the report's own, never a metric of that name
    assert frame["metrics/time"][4] == 7
    every = Run(tmp_path / "run").metrics(ranks="all")
    assert list(every["rank"]) == [0, 0, 0, 0, 0, 1]
    with pytest.raises(ConfigurationError, match="'second'"):
        Run(tmp_path / "run").metrics(ranks="second")


def test_without_pandas_the_remedy_is_named(tmp_path, monkeypatch) -> None:
    _fill(tmp_path / "run", tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install holdfast\[pandas\]"):
        Run(tmp_path / "run").metrics()


def test_verify_names_what_is_wrong_and_where(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path)
    run = Run(tmp_path / "run")
    assert not run.verify()
    (tmp_path / "run" / "checkpoint_000003" / "f").write_bytes(b"2.000001")
    (tmp_path / "run" / "checkpoint_000004" / layout.MANIFEST).write_bytes(b"junk")
    problems = run.verify()
    assert set(problems) == {"checkpoint_000003", "checkpoint_000004"}
    assert problems["checkpoint_000003"][0].startswith("f: ")
    assert "checkpoint_000004" in problems["checkpoint_000004"][0]


@pytest.mark.parametrize("manifest_was_read", [True, False])
def test_what_is_deleted_while_a_run_is_verified_is_no_damage(tmp_path, monkeypatch, manifest_was_read) -> None:
    _fill(tmp_path / "run", tmp_path)
    run, read = Run(tmp_path / "run"), Checkpoint._manifest
    assert len(run.checkpoints) == 3

    def read_and_delete(checkpoint: Checkpoint) -> object:
        manifest = read(checkpoint) if manifest_was_read else None
        shutil.rmtree(checkpoint.path)
        return manifest if manifest_was_read else read(checkpoint)

    monkeypatch.setattr(Checkpoint, "_manifest", read_and_delete)
    assert not run.verify()


def test_the_driver_is_named_while_it_lives_and_is_not_disturbed(tmp_path) -> None:
    writer = open_run(tmp_path / "run", holder="ann")
    run = Run(tmp_path / "run")
    assert run.driver is not None
    assert run.driver.startswith("ann, since")
    report(writer, tmp_path, {"f": b""})
    writer.close()
    assert run.driver is None


def test_a_validation_in_a_note_shows_in_status_and_metrics(tmp_path) -> None:
    writer = open_run(tmp_path / "run")
    committed = report(writer, tmp_path, {"f": b""}, {"loss": 1.0})
    writer.close()
    note = b'{"id":"%b","validation":"validated","validation_metrics":{"bleu":0.5}}' % committed.id.encode()
    (tmp_path / "run" / layout.note_key(committed.name)).write_bytes(note)
    (reported,) = Run(tmp_path / "run").checkpoints
    assert reported.status is CheckpointStatus.VALIDATED
    assert reported.metrics == {"loss": 1.0, "bleu": 0.5}


def test_no_run_is_said_with_the_remedy(tmp_path) -> None:
    with pytest.raises(RunNotFoundError, match="does not exist"):
        Run(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunNotFoundError, match="holds no run"):
        Run(tmp_path / "empty")
    _fill(tmp_path / "runs" / "a", tmp_path)
    with pytest.raises(RunNotFoundError, match="directory of runs; give one of them: a"):
        Run(tmp_path / "runs")


def test_checkpoints_that_were_copied_away_can_be_read(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path)
    shutil.copytree(tmp_path / "run" / "checkpoint_000002", tmp_path / "kept" / "mine")
    run = Run(tmp_path / "kept")
    assert [each.checkpoint.path for each in run.checkpoints] == [str(tmp_path / "kept" / "mine")]
    assert (run.name, run.driver, run.reports()) == ("kept", None, [])
    assert not (tmp_path / "kept" / layout.PRIVATE).exists()
