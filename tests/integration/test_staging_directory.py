"""`staging_directory`: written once, taken over, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, RunConfig, ScalingConfig
from support.drivers import Driver
from support.waiting import LIMIT_S, await_file


def run(function, tmp_path, workers=2, **options):
    return DataParallelTrainer(
        function,
        train_loop_config={"base": tmp_path},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="run", storage_path=tmp_path, **{"progress": "quiet", **options}),
    ).fit()


def left(tmp_path):
    staging = tmp_path / "run" / ".holdfast" / "staging"
    return list(staging.iterdir()) if staging.exists() else []


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_reported_from_it_is_taken_over_not_copied(tmp_path, mode, workers):
    def loop(config):
        rank = train.get_context().get_world_rank()
        with train.staging_directory() as directory:
            path = Path(directory, "sub", f"{rank}")
            path.parent.mkdir()
            path.write_bytes(b"weights")
            inode = path.stat().st_ino
            pending = train.report(
                {}, Checkpoint.from_directory(directory), checkpoint_upload_mode=CheckpointUploadMode(mode)
            )
        checkpoint = pending.result(30)
        assert Path(checkpoint.path, "sub", f"{rank}").stat().st_ino == inode

    result = run(loop, tmp_path, workers)
    assert result.checkpoint.verify() == []
    assert left(tmp_path) == []


def test_what_is_not_reported_is_removed(tmp_path):
    def loop(config):
        with train.staging_directory() as directory:
            Path(directory, "draft").write_text("x")
        assert not os.path.exists(directory)
        with pytest.raises(RuntimeError), train.staging_directory() as directory:
            raise RuntimeError
        assert not os.path.exists(directory)

    run(loop, tmp_path)
    assert left(tmp_path) == []


def test_a_report_that_fails_leaves_nothing(tmp_path):
    def loop(config):
        for step in range(2):
            with train.staging_directory() as directory:
                Path(directory, "model").write_text(str(step))
                try:
                    train.report({}, Checkpoint(directory), checkpoint_dir_name="same")
                except train.CheckpointExistsError:
                    assert os.path.exists(directory)
        return left(config["base"])

    assert run(loop, tmp_path, workers=1).return_value == []


def test_what_is_written_to_after_the_report_fails_by_name(tmp_path):
    def loop(config):
        base = config["base"]
        if train.get_context().get_world_rank() == 0:
            with train.staging_directory() as directory:
                Path(directory, "weights").write_bytes(b"reported")
                pending = train.report({}, Checkpoint(directory), checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
                Path(directory, "weights").write_bytes(b"something else")
                (base / "written").touch()
                assert "weights" in str(pending.exception(30))
        else:
            await_file(base / "written")
            with contextlib.suppress(train.ShardModifiedError):
                train.report({}, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)

    run(loop, tmp_path, on_upload_error="warn")
    assert train.Run(tmp_path / "run").checkpoints == []


def test_a_directory_that_is_to_stay_is_copied(tmp_path):
    def loop(config):
        with train.staging_directory() as directory:
            Path(directory, "weights").write_text("x")
            train.report({}, Checkpoint(directory), delete_local_checkpoint_after_upload=False)
            assert os.path.exists(f"{directory}/weights")
            Path(directory, "weights").write_text("y")
        assert not os.path.exists(directory)

    assert run(loop, tmp_path, workers=1).checkpoint.verify() == []


def test_a_killed_worker_leaves_nothing_for_long(tmp_path):
    def loop(config):
        if not (config["base"] / "second").exists():
            (config["base"] / "second").touch()
            with train.staging_directory() as directory:
                Path(directory, "half").write_text("x")
                os.kill(os.getpid(), signal.SIGKILL)
        return len(os.listdir(config["base"] / "run" / ".holdfast" / "staging")) if left(config["base"]) else 0

    result = run(loop, tmp_path, workers=1, failure_config=train.FailureConfig(max_failures=1))
    assert result.return_value == 0


DIES = """
import os, signal, sys
from pathlib import Path
import holdfast as train

def loop(config):
    with train.staging_directory() as directory:
        Path(directory, "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)

train.DataParallelTrainer(
    loop,
    scaling_config=train.ScalingConfig(num_workers=0),
    run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet"),
).fit()
"""


def test_a_killed_driver_leaves_nothing_for_the_next(tmp_path):
    with Driver(DIES, tmp_path) as driver:
        driver.communicate(timeout=LIMIT_S)
        assert driver.returncode == -signal.SIGKILL
    assert left(tmp_path)
    run(lambda config: None, tmp_path, workers=1)
    assert left(tmp_path) == []


def test_outside_a_worker_it_says_where_it_belongs():
    with pytest.raises(train.OutsideWorkerError, match=r"staging_directory\(\)"), train.staging_directory():
        pass
