"""Checkpoints that the user's function stores by itself, and what becomes of directories that were reported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, DataParallelTrainer, RunConfig, ScalingConfig
from support.waiting import LIMIT_S


def run(function, tmp_path, workers=2, **options):
    return DataParallelTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="run", storage_path=tmp_path, **{"progress": "quiet", **options}),
    ).fit()


def failure(function, tmp_path, workers=2, **options):
    """How the first rank failed, whichever it was: one that is much later has no failure of its own."""
    with pytest.raises(train.WorkerGroupError) as caught:
        run(function, tmp_path, workers, **options)
    assert caught.value.result is not None
    return next(iter(caught.value.worker_failures.values()))


def test_no_upload_registers_what_lies_in_the_run(tmp_path):
    def loop():
        storage = train.get_context().get_storage()
        rank = train.get_context().get_world_rank()
        path = Path(storage.build_checkpoint_path_from_name("direct"))
        path.mkdir(exist_ok=True)
        (path / f"shard-{rank}").write_text("x")
        train.collective.barrier()
        train.report({"rank": rank}, Checkpoint(path), checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD)

    result = run(loop, tmp_path)
    assert Path(result.checkpoint.path).name == "direct"
    assert {file.path for file in result.checkpoint.files()} == {"shard-0", "shard-1"}
    assert result.checkpoint.verify() == []


def test_no_upload_of_a_directory_elsewhere_says_where_it_belongs(tmp_path):
    def loop():
        with tempfile.TemporaryDirectory() as directory:
            train.report({}, Checkpoint(directory), checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD)

    assert "build_checkpoint_path_from_name" in str(failure(loop, tmp_path))


def test_no_upload_of_a_directory_without_a_file_names_the_place(tmp_path):
    def loop():
        path = train.get_context().get_storage().build_checkpoint_path_from_name("direct")
        os.mkdir(path)
        train.report({}, Checkpoint(path), checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD)

    error = failure(loop, tmp_path, workers=1)
    assert isinstance(error, train.EmptyCheckpointError)
    assert str(tmp_path / "run" / "direct") in str(error)


@pytest.mark.parametrize("part", ["", "deep"])
def test_a_stored_checkpoint_that_is_reported_again_stays(tmp_path, part):
    def loop():
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "deep").mkdir()
            Path(directory, "deep", "model").write_text("weights")
            train.report({"step": 1}, Checkpoint(directory))
        again = Checkpoint(os.path.join(train.get_checkpoint().path, part))
        for mode in (train.CheckpointUploadMode.ASYNC, train.CheckpointUploadMode.SYNC):
            with pytest.raises(train.CheckpointSourceError, match="cannot be given away"):
                train.report({}, again, checkpoint_upload_mode=mode, delete_local_checkpoint_after_upload=True)
        train.report({"step": 2}, again, checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)

    result = run(loop, tmp_path, workers=1)
    assert [metrics["step"] for _, metrics in result.best_checkpoints] == [1, 2]
    assert not train.Run(result.path).verify()


def test_a_function_of_the_user_may_upload(tmp_path):
    def loop():
        def upload(checkpoint, name):
            target = train.get_context().get_storage().build_checkpoint_path_from_name(name)
            os.makedirs(target, exist_ok=True)
            for file in os.listdir(checkpoint.path):
                os.link(os.path.join(checkpoint.path, file), os.path.join(target, file))
            return Checkpoint(target)

        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model").write_text("weights")
            train.report({}, Checkpoint.from_directory(directory), checkpoint_upload_fn=upload)

    result = run(loop, tmp_path, workers=1)
    assert Path(result.checkpoint.path, "model").read_text() == "weights"
    assert result.checkpoint.verify() == []


def test_a_function_of_the_user_may_upload_from_every_rank(tmp_path):
    def upload(checkpoint, name):
        target = Path(train.get_context().get_storage().build_checkpoint_path_from_name(name))
        target.mkdir(exist_ok=True)
        for number in range(200):  # the other rank looks while this one writes
            (target / f"{train.get_context().get_world_rank()}-{number}").write_text(checkpoint.path)
        return Checkpoint(str(target))

    def loop():
        for _ in range(3):
            with tempfile.TemporaryDirectory() as directory:
                train.report({}, Checkpoint(directory), checkpoint_upload_fn=upload)

    result = run(loop, tmp_path)
    assert len(result.checkpoint.files()) == 400
    assert result.checkpoint.verify() == []


def test_what_a_dead_attempt_uploaded_does_not_mix_with_the_next(tmp_path):
    def upload(checkpoint, name):
        context = train.get_context()
        target = Path(context.get_storage().build_checkpoint_path_from_name(name))
        target.mkdir(exist_ok=True)
        again = (tmp_path / "again").exists()
        (target / f"{context.get_world_rank()}-{again}").write_text("x")
        if not again and context.get_world_rank() == 0:
            (tmp_path / "again").touch()
            raise RuntimeError("in mid-upload")
        return Checkpoint(str(target))

    def loop():
        with tempfile.TemporaryDirectory() as directory:
            train.report({}, Checkpoint(directory), checkpoint_upload_fn=upload)

    result = run(loop, tmp_path, failure_config=train.FailureConfig(max_failures=1))
    assert sorted(file.path for file in result.checkpoint.files()) == ["0-True", "1-True"]


def test_the_local_directory_stays_unless_it_was_given_away(tmp_path):
    def loop():
        for delete in (False, True):
            directory = tempfile.mkdtemp(dir=tmp_path)
            Path(directory, "model").write_text("weights")
            inode = os.stat(os.path.join(directory, "model")).st_ino
            train.report({}, Checkpoint.from_directory(directory), delete_local_checkpoint_after_upload=delete)
            assert os.path.exists(directory) is not delete
            stored = os.stat(os.path.join(train.get_checkpoint().path, "model"))
            assert (stored.st_ino == inode) is delete  # taken over, not copied

    result = run(loop, tmp_path, workers=1)
    assert result.checkpoint.verify() == []


def test_a_directory_that_was_reported_asynchronously_is_gone_when_it_is_stored(tmp_path):
    def loop():
        directory = tempfile.mkdtemp(dir=tmp_path)
        Path(directory, "model").write_text("weights")
        pending = train.report(
            {}, Checkpoint.from_directory(directory), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC
        )
        pending.result(LIMIT_S)
        assert not os.path.exists(directory)

    run(loop, tmp_path, workers=1)
