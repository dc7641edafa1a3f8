"""What a user may pickle into a file holds no credentials, and works where it needs none."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from holdfast import Checkpoint, DataParallelTrainer, Result, Run, RunConfig, ScalingConfig, TrainingFailedError, report
from holdfast.errors import ConfigurationError
from holdfast.secrecy import private_channel, url_without_secrets
from holdfast.worker.context import TrainContext
from holdfast.worker.protocol import Job

pytest.importorskip("fsspec", reason='needs fsspec, which is not installed: pip install "fsspec"')

from support.file_systems import BareFileSystem

_SECRET = "SECRETSECRET"
_URL = f"s3://KEY:{_SECRET}@bucket/x?region=r&session_token={_SECRET}"


def _trainer() -> DataParallelTrainer:
    config = RunConfig(
        storage_path=_URL,
        storage_options={
            "secret": _SECRET,
            "client_kwargs": {"endpoint_url": "http://e", "aws_secret_access_key": _SECRET},
        },
        worker_runtime_env={"env_vars": {"HF_TOKEN": _SECRET, "OMP_NUM_THREADS": "1"}},
    )
    return DataParallelTrainer(print, run_config=config, resume_from=_URL)


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_a_pickle_of_a_trainer_and_its_configuration_holds_no_secret(module: Any) -> None:
    trainer = _trainer()
    for each in (trainer, trainer.run_config):
        assert _SECRET.encode() not in module.dumps(each)
    again = pickle.loads(module.dumps(trainer))
    assert again.resume_from == again.run_config.storage_path == "s3://bucket/x?region=r"
    assert again.run_config.storage_options == {"client_kwargs": {"endpoint_url": "http://e"}}
    assert again.run_config.worker_runtime_env == {"env_vars": {"OMP_NUM_THREADS": "1"}}
    with private_channel():
        assert pickle.loads(module.dumps(trainer)).run_config == trainer.run_config


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_the_secrets(copied: Any, tmp_path: Path) -> None:
    trainer = _trainer()
    again = copied(trainer)
    assert again is not trainer
    assert (again.run_config, again.resume_from) == (trainer.run_config, _URL)
    assert copied([trainer.run_config]) == [trainer.run_config]
    checkpoint = copied(Checkpoint(str(tmp_path), BareFileSystem(secret=_SECRET)))
    assert checkpoint.filesystem == BareFileSystem(secret=_SECRET)
    assert checkpoint.files() == []


def test_a_configuration_whose_file_system_was_left_out_does_not_store_on_this_machine(tmp_path: Path) -> None:
    config = RunConfig(name="run", storage_path=str(tmp_path), storage_filesystem=BareFileSystem(secret=_SECRET))
    again = pickle.loads(pickle.dumps(config))
    with pytest.raises(ConfigurationError, match="holds no credentials"):
        DataParallelTrainer(print, run_config=again, scaling_config=ScalingConfig(num_workers=0)).fit()
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_of_what_came_of_a_run_holds_no_secret(tmp_path: Path) -> None:
    def fails() -> None:
        report({"loss": 1.0})
        raise ValueError("boom")

    filesystem = BareFileSystem(secret=_SECRET)
    config = RunConfig(name="run", storage_path=str(tmp_path), storage_filesystem=filesystem, progress="quiet")
    with pytest.raises(TrainingFailedError) as caught:
        DataParallelTrainer(fails, run_config=config, scaling_config=ScalingConfig(num_workers=0)).fit()
    path = str(tmp_path / "run")
    for each in (caught.value, caught.value.result, Result.from_path(path, filesystem), Run(path, filesystem)):
        data = cloudpickle.dumps(each)
        assert _SECRET.encode() not in data
        assert type(pickle.loads(data)) is type(each)
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert isinstance(error.worker_failures[0], ValueError)
    again = error.result
    assert (again.path, again.metrics, again.filesystem) == (path, {"loss": 1.0}, None)


def test_what_a_worker_begins_with_is_not_shown() -> None:
    secret = _SECRET.encode()
    job = Job(
        payload=secret, environment={"TOKEN": _SECRET}, search_path=[], argv=[], directory="/", rank=1, world_size=2, local_rank=1,
        local_world_size=2, node_rank=0, run_name="run", storage_url="/a", run_url="/a/run", attempt=3, checkpoint=None, first_report=1,
        storage=secret, origin=secret,
    )  # fmt: skip
    assert repr(job) == "Job(run_name='run', attempt=3, rank=1)"
    context = TrainContext(job, BareFileSystem(secret=_SECRET))
    for each in (context, context.get_storage()):
        assert secret not in pickle.dumps(each)
    assert pickle.loads(pickle.dumps(context)).get_world_rank() == 1
    with private_channel():
        assert pickle.loads(pickle.dumps(context.get_storage())) == context.get_storage()


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("/a/path?token=1", "/a/path?token=1"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("s3://KEY:word@bucket/x?secret_key=a&b&region=r", "s3://bucket/x?region=r"),
        ("abfss://c:word@account.dfs.core.windows.net/x", "abfss://c@account.dfs.core.windows.net/x"),
        ("sftp://me:word@host:22/x", "sftp://me@host:22/x"),
    ],
)
def test_a_url_keeps_what_is_no_secret(url: str, left: str) -> None:
    assert url_without_secrets(url) == left
