"""`checkpoint_upload_fn` in `ASYNC` mode: the user's function stores the checkpoint while training goes on."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig

ASYNC = CheckpointUploadMode.ASYNC


def run(function, tmp_path, workers=2, failures=0, **options):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name="run",
            storage_path=tmp_path,
            failure_config=FailureConfig(max_failures=failures),
            **{"progress": "quiet", **options},
        ),
    ).fit()


def stored(checkpoint, name):
    target = train.get_context().get_storage().build_checkpoint_path_from_name(name)
    return Checkpoint(shutil.copytree(checkpoint.path, target, dirs_exist_ok=True))


def await_file(path):
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def report_one(step, upload, **options):
    rank = train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, f"shard-{rank}").write_text(str(step))
        return train.report(
            {"step": step}, Checkpoint(directory), checkpoint_upload_mode=ASYNC, checkpoint_upload_fn=upload, **options
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_while_the_function_stores(tmp_path, workers):
    def loop(config):
        base = Path(config["base"])
        rank = train.get_context().get_world_rank()
        tempfile.tempdir = str(base / f"own-{rank}")
        os.mkdir(tempfile.tempdir)
        seen = []

        def upload(checkpoint, name):
            await_file(base / f"returned-{rank}")
            seen.append(name)
            return stored(checkpoint, name)

        # Both return although nothing is stored, and what was reported is gone from where it lay.
        pending = [report_one(step, upload) for step in (1, 2)]
        assert not any(each.done() for each in pending)
        (base / f"returned-{rank}").touch()
        names = [Path(each.result(60).path).name for each in pending]
        assert names == seen  # one after another
        report_one(3, upload)  # stored although the function ends at once

    result = run(loop, tmp_path, workers)
    assert result.metrics == {"step": 3}
    assert [metrics["step"] for _, metrics in result.best_checkpoints] == [1, 2, 3]
    for checkpoint, metrics in result.best_checkpoints:
        assert checkpoint.verify() == []
        assert {file.path for file in checkpoint.files()} == {f"shard-{rank}" for rank in range(max(1, workers))}
        assert Path(checkpoint.path, "shard-0").read_text() == str(metrics["step"])
    for rank in range(max(1, workers)):
        assert os.listdir(tmp_path / f"own-{rank}") == []


def test_a_directory_that_is_not_given_away_stays_where_it_is(tmp_path):
    def loop(config):
        directory = Path(config["base"], "mine")
        directory.mkdir()
        (directory / "model").write_text("weights")
        seen = []

        def upload(checkpoint, name):
            seen.append(checkpoint.path)
            return stored(checkpoint, name)

        train.report(
            {},
            Checkpoint(directory),
            checkpoint_upload_mode=ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,
        ).result(60)
        assert seen == [str(directory)]
        assert (directory / "model").read_text() == "weights"

    assert run(loop, tmp_path, 1).checkpoint is not None


def fails(checkpoint, name):
    raise OSError("the archive is closed on Sundays")


def elsewhere(checkpoint, name):
    return checkpoint


def nothing(checkpoint, name):
    return None


@pytest.mark.parametrize(
    ("upload", "says"),
    [
        (fails, "checkpoint_upload_fn of report 1 raised OSError: the archive is closed on Sundays"),
        (elsewhere, "does not lie at"),
        (nothing, "checkpoint_upload_fn returned NoneType"),
    ],
)
def test_what_the_function_does_wrong_fails_that_checkpoint(tmp_path, upload, says):
    def loop():
        pending = report_one(1, upload)
        assert says in str(pending.exception(60))
        report_one(2, stored)

    with pytest.raises(train.WorkerGroupError, match=says.replace("(", r"\(")):
        run(loop, tmp_path, 1)
    assert run(loop, tmp_path / "warned", 1, on_upload_error="warn").metrics == {"step": 2}


def test_a_worker_that_is_killed_in_it_leaves_no_checkpoint(tmp_path):
    def loop(config):
        base = Path(config["base"])
        rank = train.get_context().get_world_rank()
        begun = train.get_checkpoint()
        report_one(1, stored).result(60)

        def upload(checkpoint, name):
            found = stored(checkpoint, name)
            (base / "half").touch()
            if rank == 1:
                time.sleep(600)
            return found

        if begun is None:
            report_one(2, upload)
            if rank == 1:
                await_file(base / "half")
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        assert Path(begun.path, "shard-0").read_text() == "1"

    result = run(loop, tmp_path, 2, failures=1)
    assert [metrics["step"] for _, metrics in result.best_checkpoints] == [1, 1]


def test_an_error_waits_for_what_is_being_stored(tmp_path):
    def loop(config):
        base = Path(config["base"])

        def upload(checkpoint, name):
            await_file(base / "raised")
            return stored(checkpoint, name)

        report_one(1, upload)
        (base / "raised").touch()
        raise ValueError("no more")

    with pytest.raises(train.WorkerGroupError, match="no more") as caught:
        run(loop, tmp_path, 1)
    assert caught.value.result.metrics == {"step": 1}
    assert caught.value.result.checkpoint.verify() == []
