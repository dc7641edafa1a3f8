"""Whole jobs whose runs lie in a file system of fsspec: what a local directory guarantees holds there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import cloudpickle
import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointConfig, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from holdfast.stores import open_store, plain_filesystem
from support.runs import open_run
from support.s3_server import KEYS, running_server

pytest.importorskip("fsspec", reason='needs fsspec, which is not installed: pip install "fsspec"')

from support.file_systems import BareFileSystem, ElsewhereFileSystem, RefusingFileSystem


@pytest.fixture(autouse=True)
def _travels():
    # The function travels by value: this module cannot be imported by a worker.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def count(config):
    """Counts to `steps` through checkpoints of both ranks; rank 1 is killed at step 3 of the first attempt."""
    rank = train.get_context().get_world_rank()
    first = 0
    checkpoint = train.get_checkpoint()
    if checkpoint:
        assert type(checkpoint.filesystem).__name__ == config["filesystem"]
        assert train.get_context().get_storage().storage_filesystem == checkpoint.filesystem
        with checkpoint.as_directory() as directory:
            first = json.loads(Path(directory, "state.json").read_text())["step"] + 1
            assert Path(directory, "shards", "1.bin").stat().st_size == 10_000
    for step in range(first, config["steps"]):
        if step == 3 and checkpoint is None:
            train.collective.barrier()  # what no rank has reported cannot be committed
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        make = train.staging_directory if config["stages"] else tempfile.TemporaryDirectory
        with make() as directory:
            Path(directory, "shards").mkdir()
            Path(directory, "shards", f"{rank}.bin").write_bytes(os.urandom(10_000))
            if rank == 0:
                Path(directory, "state.json").write_text(json.dumps({"step": step}))
            train.report({"step": step, "first": first}, Checkpoint.from_directory(directory), **config["how"])


def fit(path, filesystem, steps, *, stages=False, how=None, num_workers=2, options=None):
    return DataParallelTrainer(
        count,
        train_loop_config={
            "steps": steps,
            "stages": stages,
            "how": how or {},
            "filesystem": type(plain_filesystem(filesystem)).__name__,
        },
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            storage_options=options,
            progress="quiet",
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="step"),
            restart_cache_bytes=0,
        ),
    ).fit()


def check_run(run, path, filesystem):
    assert [each.metrics["step"] for each in run.checkpoints] == [5, 6]
    assert not any(run.verify().values())
    assert run.driver is None
    best = run.best()
    assert best is not None
    assert best.checkpoint.filesystem == filesystem
    with best.checkpoint.as_directory() as directory:
        assert json.loads(Path(directory, "state.json").read_text()) == {"step": 6}
    # Its path is one in that file system, as Ray's users open it.
    again = Checkpoint(best.checkpoint.path, filesystem)
    assert again == best.checkpoint
    with again.open("state.json") as file:
        assert json.load(file) == {"step": 6}
    assert {each["metrics"]["step"] for each in run.reports()} == set(range(7))
    names = {entry.key for entry in open_store(path, filesystem).list("run") if entry.is_directory}
    assert len([name for name in names if not name.startswith("run/.")]) == 2


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("sync", ElsewhereFileSystem),
        ("async", ElsewhereFileSystem),
        ("staging", ElsewhereFileSystem),
        ("sync", RefusingFileSystem),
        ("sync", BareFileSystem),
    ],
)
def test_a_job_comes_back_from_a_file_system_after_a_kill_and_on_another_day(tmp_path, mode, kind):
    path, filesystem = str(tmp_path / "runs"), kind()
    how = {"checkpoint_upload_mode": train.CheckpointUploadMode.ASYNC} if mode == "async" else {}
    result = fit(path, filesystem, 5, stages=mode == "staging", how=how)
    assert (result.metrics["step"], result.metrics["first"]) == (4, 3)
    again = fit(path, filesystem, 7, stages=mode == "staging", how=how)
    assert (again.metrics["step"], again.metrics["first"]) == (6, 5)
    assert again.path == f"{path}/run"
    assert again.filesystem is filesystem
    assert again.checkpoint.filesystem is filesystem
    check_run(train.Run(again.path, storage_filesystem=filesystem), path, filesystem)
    read = train.Result.from_path(again.path, storage_filesystem=filesystem)
    assert read.checkpoint == again.checkpoint
    assert read.filesystem is filesystem
    assert list(Path(tmp_path, "runs").rglob(".holdfast-*")) == []


def test_a_file_system_of_pyarrow_for_this_machine_is_the_machine_itself(tmp_path):
    fs = pytest.importorskip("pyarrow.fs", reason='needs pyarrow, which is not installed: pip install "pyarrow"')
    filesystem = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    result = fit("runs", filesystem, 5)
    assert result.metrics["step"] == 4
    assert result.path == str(tmp_path / "runs" / "run")
    assert result.filesystem == fs.LocalFileSystem()
    assert train.Run("runs/run", storage_filesystem=filesystem).latest.metrics["step"] == 4
    # Its driver is known by a lock of the kernel.
    assert Path(result.path, ".holdfast", "lock").exists()


def test_memory_of_this_process_is_for_functions_that_run_in_it():
    with pytest.raises(train.ConfigurationError, match="num_workers=0"):
        fit("memory://runs", None, 1)
    fit("memory://runs", None, 2, num_workers=0)
    run = train.Run("memory://runs/run")
    assert [each.metrics["step"] for each in run.checkpoints] == [0, 1]
    assert not any(run.verify().values())


def test_a_second_driver_of_a_live_run_is_refused(tmp_path):
    store = open_store(str(tmp_path / "run"), ElsewhereFileSystem())
    with contextlib.closing(open_run(store)):
        assert f"process {os.getpid()}" in (train.Run(store.url, ElsewhereFileSystem()).driver or "")
        with pytest.raises(train.RunInUseError, match="is being driven by"):
            open_run(store)
    open_run(store).close()


class CannotTravel(ElsewhereFileSystem):
    protocol = "cannot-travel"

    def __reduce__(self):
        raise TypeError("not this one")


def test_a_file_system_that_cannot_be_sent_is_told_of_before_anything_starts(tmp_path):
    with pytest.raises(train.ConfigurationError, match=r"CannotTravel\) cannot be sent to the workers: TypeError"):
        fit(str(tmp_path / "runs"), CannotTravel(), 1)
    assert not Path(tmp_path, "runs").exists()


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        yield server


def count_in_bucket(config):
    checkpoint = train.get_checkpoint()
    for step in range(checkpoint.get_metadata()["step"] + 1 if checkpoint else 0, config["steps"]):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state").write_text(str(step))
            made = Checkpoint.from_directory(directory)
            made.set_metadata({"step": step})
            train.report({"step": step}, made)


def test_options_reach_the_workers_and_what_comes_back(server, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    # What the options say is nowhere else.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    options = {
        "key": KEYS["AWS_ACCESS_KEY_ID"],
        "secret": KEYS["AWS_SECRET_ACCESS_KEY"],
        "client_kwargs": {"endpoint_url": server.endpoint, "region_name": "us-east-1"},
    }
    url = f"s3://{server.make_bucket()}/exp"
    for steps in (2, 4):
        result = DataParallelTrainer(
            count_in_bucket,
            train_loop_config={"steps": steps},
            run_config=RunConfig(name="run", storage_path=url, storage_options=options, progress="quiet"),
        ).fit()
    assert result.path == f"{url}/run"
    with result.checkpoint.as_directory() as directory:
        assert Path(directory, "state").read_text() == "3"
    run = train.Run(result.path, storage_options=options)
    assert [each.metrics["step"] for each in run.checkpoints] == [0, 1, 2, 3]
    assert train.Result.from_path(result.path, storage_options=options).metrics == {"step": 3}
    assert Checkpoint(result.checkpoint.path, storage_options=options).get_metadata() == {"step": 3}
    # Nothing in the bucket says how it is reached.
    store = open_store(url, options=options)
    secret = KEYS["AWS_SECRET_ACCESS_KEY"].encode()
    assert not any(secret in store.read(entry.key) for entry in store.list(recursive=True))
