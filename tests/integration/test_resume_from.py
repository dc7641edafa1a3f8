"""`resume_from=`: a run that has no checkpoint of its own begins with another's, and then goes its own way."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

import holdfast as train
from holdfast.persistence import layout

RAY_RUN = Path(__file__).parents[1] / "compat" / "ray" / "run"


def count(config) -> list[str]:
    """Saves a number after the one it began with, `steps` times; says what it began with, and what it had after that."""
    seen = []
    checkpoint = train.get_checkpoint()
    number = 0
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            number = json.loads(Path(directory, "number").read_text())
    for _ in range(config["steps"]):
        seen.append(train.get_checkpoint().path if train.get_checkpoint() else "")
        number += 1
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "number").write_text(json.dumps(number))
            train.report({"number": number}, checkpoint=train.Checkpoint.from_directory(directory))
        if number == config["fails_at"]:
            raise RuntimeError("intentional")
    return seen


def trainer(storage, name, steps, *, workers=1, failures=0, function=count, fails_at=None, **options):
    return train.DataParallelTrainer(
        function,
        train_loop_config={"steps": steps, "fails_at": fails_at},
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(
            name=name,
            storage_path=storage,
            progress="quiet",
            failure_config=train.FailureConfig(max_failures=failures),
        ),
        **options,
    )


def fit(*args, **options):
    return trainer(*args, **options).fit()


@pytest.fixture
def first(tmp_path):
    return fit(tmp_path / "runs", "first", 2)


@pytest.mark.parametrize("form", ["checkpoint", "path", "run", "run's path"])
def test_each_form_gives_the_checkpoint_that_is_meant(first, tmp_path, form) -> None:
    given = {
        "checkpoint": first.checkpoint,
        "path": first.checkpoint.path,
        "run": train.Run(first.path),
        "run's path": Path(first.path),
    }[form]
    result = fit(tmp_path / "runs", "second", 1, workers=0, resume_from=given)
    assert result.metrics == {"number": 3}
    assert result.return_value == [first.checkpoint.path]


def test_every_rank_begins_with_it_and_its_own_counts_afterwards(first, tmp_path) -> None:
    def function(config):
        seen = count(config)
        assert seen[0].endswith("first/checkpoint_000002")
        assert seen[1].endswith("second/checkpoint_000001")
        return seen

    result = fit(tmp_path / "runs", "second", 2, workers=2, function=function, resume_from=first.path)
    assert result.metrics == {"number": 4}
    # A later fit, and a name that by now leads nowhere: its own is there, and nobody looks.
    shutil.rmtree(first.path)
    result = fit(tmp_path / "runs", "second", 1, workers=0, resume_from=first.path)
    assert result.metrics == {"number": 5}
    assert result.return_value == [f"{tmp_path}/runs/second/checkpoint_000002"]


def test_an_attempt_that_failed_before_it_saved_begins_with_it_again(first, tmp_path) -> None:
    def function(config):
        marker = Path(config["marker"])
        if not marker.exists():
            marker.touch()
            raise RuntimeError("intentional")
        return count(config)

    made = trainer(tmp_path / "runs", "second", 1, failures=1, function=function, resume_from=first.checkpoint)
    made.train_loop_config["marker"] = str(tmp_path / "marker")
    assert made.fit().metrics == {"number": 3}


def test_a_restart_begins_with_its_own(first, tmp_path) -> None:
    result = fit(tmp_path / "runs", "second", 1, failures=1, fails_at=3, resume_from=first.path)
    assert result.metrics == {"number": 4}
    assert result.return_value == [f"{tmp_path}/runs/second/checkpoint_000001"]


def test_a_run_of_ray_train_is_gone_on_with_and_left_as_it_is(tmp_path) -> None:
    source = Path(shutil.copytree(RAY_RUN, tmp_path / "ray"))
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in source.rglob("*"))

    def function(config):
        checkpoint = train.get_checkpoint()
        with checkpoint.as_directory() as directory:
            text = Path(directory, "rank-0.txt").read_text()
        return text, checkpoint.get_metadata()

    for given in (source, train.Run(source), train.Run(source).latest.checkpoint):
        result = fit(tmp_path / "runs", f"run-{type(given).__name__}", 0, function=function, resume_from=given)
        assert result.return_value == ("step 4 of rank 0\n", {"step": 4})
    result = fit(tmp_path / "runs", "one", 0, function=function, resume_from=train.Run(source).best())
    assert result.return_value[1] == {"step": 3}
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in source.rglob("*")) == before


def test_files_that_no_report_made_will_do_also_below_a_directory(tmp_path) -> None:
    Path(tmp_path, "own", "checkpoint").mkdir(parents=True)
    Path(tmp_path, "own", "checkpoint", "model").write_text("weights")

    def function(config):
        with train.get_checkpoint().as_directory() as directory:
            return Path(directory, "checkpoint", "model").read_text()

    assert fit(tmp_path / "runs", "run", 0, function=function, resume_from=tmp_path / "own").return_value == "weights"


def test_what_it_came_from_is_in_the_runs_record(first, tmp_path) -> None:
    result = fit(tmp_path / "runs", "second", 1, workers=0, resume_from=first.path)
    record = json.loads(Path(result.path, layout.RUN_RECORD).read_text())
    assert record["configuration"]["resume_from"] == first.path


@pytest.mark.parametrize("given", [7, b"path", None.__class__, ["path"]])
def test_what_is_no_checkpoint_at_all_is_refused_at_once(tmp_path, given) -> None:
    with pytest.raises(train.ConfigurationError, match="resume_from must be a Checkpoint, a Run, or the path"):
        trainer(tmp_path, "run", 1, resume_from=given)


def test_what_leads_nowhere_is_told_before_a_worker_starts(first, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    made = trainer(tmp_path / "runs", "empty", 0, workers=0)
    made.fit()
    for given, what in (
        (tmp_path / "nothing", "neither a checkpoint nor a run"),
        (tmp_path / "empty", "neither a checkpoint nor a run"),
        (tmp_path / "file", "file"),
        (tmp_path / "runs", "directory of runs.*first"),
        (tmp_path / "runs" / "empty", "has no checkpoint"),
        (train.Checkpoint(tmp_path / "nothing"), "no checkpoint at"),
        (train.Checkpoint(tmp_path / "empty"), "no file in it"),
    ):
        with pytest.raises(train.HoldfastError, match=what):
            fit(tmp_path / "runs", "second", 1, function=os._exit, resume_from=given)
    # And the place is free: nothing of these drives it any more.
    assert fit(tmp_path / "runs", "second", 1, workers=0, resume_from=first.path).metrics == {"number": 3}


def test_one_that_is_damaged_is_named_before_a_worker_starts(first, tmp_path) -> None:
    Path(first.checkpoint.path, "number").write_text("7")
    with pytest.raises(train.DamagedCheckpointError, match=r"first/checkpoint_000002.*number"):
        fit(tmp_path / "runs", "second", 1, function=os._exit, resume_from=first.path)
    older = train.Run(first.path).checkpoints[0].checkpoint
    assert fit(tmp_path / "runs", "second", 1, workers=0, resume_from=older).metrics == {"number": 2}


def test_this_programs_memory_is_refused_where_workers_cannot_reach_it(tmp_path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    memory = fsspec.filesystem("memory")
    memory.pipe("/origin/number", b"4")
    try:
        with pytest.raises(train.ConfigurationError, match="process's memory"):
            fit(tmp_path, "run", 1, function=os._exit, resume_from="memory://origin")
        assert fit(tmp_path, "run", 1, workers=0, resume_from="memory://origin").metrics == {"number": 5}
    finally:
        memory.rm("/origin", recursive=True)
