"""Warnings that are logged while a run goes on, as a person sees them."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
