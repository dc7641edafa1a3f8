"""Warnings that are logged while a run goes on, as a person sees them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint

SCRIPT = """
import errno, logging, sys, tempfile
from pathlib import Path
import holdfast as train, holdfast.persistence.checkpoint_writer as module
if sys.argv[2] == "own":
    logging.basicConfig(format="mine: %(message)s")
commit, failed = module.commit, []
def failing(*args, **kwargs):  # as a mount that is away for a moment
    if not failed:
        failed.append(True)
        raise train.StorageError("away") from OSError(errno.EIO, "away")
    return commit(*args, **kwargs)
module.commit = failing
def loop():
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "model").write_text("weights")
        train.report({}, train.Checkpoint(directory))
train.DataParallelTrainer(loop, run_config=train.RunConfig(name="away", storage_path=sys.argv[1], progress="plain")).fit()
logging.getLogger("holdfast").warning("after it")
"""


@pytest.mark.parametrize(
    ("logging", "begins", "later"),
    [("none", "[holdfast away] warning: The commit of", "after it"), ("own", "mine: The commit of", "mine: after it")],
)
def test_a_retry_is_told_of_as_the_runs_other_warnings_are(tmp_path, logging, begins, later):
    command = [sys.executable, "-c", SCRIPT, tmp_path, logging]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stderr.splitlines()
    (told,) = [line for line in lines if "is tried again" in line]
    assert told.startswith(begins), done.stderr
    assert lines[-1] == later


def fit(function, base, *, workers=0, failures=0, **options):
    return train.DataParallelTrainer(
        function,
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(
            name="run", storage_path=base, progress="plain", failure_config=train.FailureConfig(max_failures=failures)
        ),
        **options,
    ).fit()


def report_model(step):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, f"model-{train.get_context().get_world_rank()}").write_text("weights")
        train.report({"step": step}, train.Checkpoint(directory))


def forgets_and_fails():
    report_model(1)
    report_model(2)
    raise RuntimeError("again")


FORGOTTEN = (
    "warning: the function did not ask for checkpoint_000002 (holdfast.get_checkpoint()) before its first report"
)


def test_a_resumption_that_the_function_forgot_is_told_once(tmp_path, capfd):
    with pytest.raises(train.WorkerGroupError):
        fit(forgets_and_fails, tmp_path, failures=2)
    told = capfd.readouterr().err
    assert told.count("did not ask for") == 1
    assert f"[holdfast run] {FORGOTTEN}" in told
    # And by a later driver, and of another run's.
    with pytest.raises(train.WorkerGroupError):
        fit(forgets_and_fails, tmp_path)
    assert "did not ask for checkpoint_000006" in capfd.readouterr().err
    with pytest.raises(train.WorkerGroupError):
        fit(forgets_and_fails, tmp_path / "other", resume_from=tmp_path / "run")
    assert f"did not ask for {tmp_path}/run/checkpoint_000008" in capfd.readouterr().err


def asks(how):
    def loop():
        rank = train.get_context().get_world_rank()
        if how == "list":
            train.get_all_reported_checkpoints()
        elif rank == 0:  # which tells the others what it found, perhaps
            train.get_checkpoint()
        forgets_and_fails()

    return loop


@pytest.mark.parametrize(("how", "workers"), [("list", 0), ("one rank", 2)])
def test_a_function_that_asked_is_told_nothing(tmp_path, capfd, how, workers):
    with pytest.raises(train.WorkerGroupError):
        fit(asks(how), tmp_path, workers=workers, failures=1)
    assert "did not ask" not in capfd.readouterr().err


@pytest.mark.parametrize("read", ["the run's", "another's", "one to be reported"])
def test_who_reads_a_checkpoint_of_this_run_has_asked_for_it(tmp_path, capfd, read):
    fit(lambda: report_model(1), tmp_path)
    fit(lambda: report_model(1), tmp_path / "other")

    def loop():
        with train.staging_directory() as staged:
            Path(staged, "model-0").write_text("weights")
            place = tmp_path / "run" if read == "the run's" else tmp_path / "other" / "run"
            found = train.Run(os.path.relpath(place)).latest.checkpoint
            opened = Checkpoint(staged) if read == "one to be reported" else found
            with opened.as_directory() as directory:
                assert Path(directory, "model-0").read_text() == "weights"
        report_model(2)

    fit(loop, tmp_path)
    assert ("did not ask" in capfd.readouterr().err) == (read != "the run's")


def test_a_function_that_reports_nothing_and_returns_nothing_is_told_of(tmp_path, capfd):
    fit(lambda: None, tmp_path / "nothing")
    assert (
        "[holdfast run] warning: the function returned without a report and without a value" in capfd.readouterr().err
    )
    fit(lambda: 1, tmp_path / "value")
    fit(lambda: train.report({}), tmp_path / "metrics")
    fit(lambda: report_model(1), tmp_path / "again")
    fit(lambda: None, tmp_path / "again")  # as one that finds that all is done
    assert "without a report" not in capfd.readouterr().err
