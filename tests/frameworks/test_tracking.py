"""Real runs into the trackers' own libraries, read back by those."""

from __future__ import annotations

import math
import os
import signal
import tempfile
from pathlib import Path

import pytest

import holdfast as train
from holdfast import tracking

CONFIG = {"lr": 0.1, "net": {"layers": [8, 8]}}


def loop(config):
    """Three reports, a SIGKILL in the first attempt after the second, and steps that are made again."""
    first = 1
    if checkpoint := train.get_checkpoint():
        with checkpoint.as_directory() as directory:
            first = int(Path(directory, "step").read_text()) + 1
    for step in range(first, config.get("until", 4)):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "step").write_text(str(step))
            # Every second one only: after the failure step 2 is made again.
            checkpoint = train.Checkpoint.from_directory(directory) if step % 2 else None
            train.report({"loss": {"train": 1 / step}, "step": step, "odd": math.nan, "note": "x"}, checkpoint)
        if step == 2 and first == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(callback, tmp_path, **config):
    return train.DataParallelTrainer(
        loop,
        train_loop_config={**CONFIG, **config},
        run_config=train.RunConfig(
            name="tracked",
            storage_path=str(tmp_path / "runs"),
            failure_config=train.FailureConfig(max_failures=1),
            callbacks=[callback],
        ),
    ).fit()


def warnings(caplog):
    """Ours alone: a library's own threads may speak of an earlier test."""
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING" and each.name == "holdfast"]


def test_tensorboard(tmp_path, caplog):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams import plugin_data_pb2

    callback = tracking.TensorBoardCallback(tmp_path / "logs", step="step")
    fit(callback, tmp_path)
    result = fit(callback, tmp_path, until=6)
    assert warnings(caplog) == []
    (directory,) = (tmp_path / "logs").iterdir()
    assert directory.name.startswith("tracked-")
    assert len(list(directory.iterdir())) == 2
    read = events.EventAccumulator(str(directory), size_guidance={"tensors": 0})
    read.Reload()
    losses = read.Scalars("loss/train")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5]  # step 2 once, although it was made twice
    assert [event.value for event in losses] == pytest.approx([1 / step for step in range(1, 6)])
    assert all(math.isnan(event.value) for event in read.Scalars("odd"))
    texts = {event.step: event.tensor_proto.string_val[0].decode() for event in read.Tensors("checkpoint")}
    assert sorted(texts) == [1, 3, 5]
    assert texts[5] == result.checkpoint.path
    plugins = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(plugins).session_start_info
    assert start.hparams["lr"].number_value == 0.1
    assert start.hparams["net/layers"].string_value == "[8, 8]"


def test_mlflow(tmp_path, caplog, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the one store that mlflow-skinny has without a server
    uri = (tmp_path / "mlruns").as_uri()
    callback = tracking.MLflowCallback("experiment", tracking_uri=uri, tags={"team": "a"})
    fit(callback, tmp_path)
    result = fit(callback, tmp_path, until=6)
    assert warnings(caplog) == []
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert (run.info.run_name, run.info.status) == ("tracked", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "loss/train")
    assert [(each.step, each.value) for each in history] == [
        (report, 1 / step) for report, step in enumerate([1, 2, 2, 3, 4, 5], 1)
    ]
    assert math.isnan(client.get_metric_history(run.info.run_id, "odd")[0].value)
    assert run.data.params == {"lr": "0.1", "net/layers": "[8, 8]", "until": "6"}
    assert run.data.tags["team"] == "a"
    assert run.data.tags["holdfast.checkpoint"] == result.checkpoint.path
    assert run.data.tags["holdfast.path"] == result.path

    def fails(config):
        train.report({"odd [name] //../x": 1})
        raise ValueError("intentional")

    with pytest.raises(train.TrainingFailedError):
        train.DataParallelTrainer(
            fails,
            train_loop_config={**CONFIG, "lr": 0.2},
            run_config=train.RunConfig(name="tracked", storage_path=str(tmp_path / "runs"), callbacks=[callback]),
        ).fit()
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.metrics["odd _name_ /_/x"] == 1
    assert run.data.params["lr"] == "0.1"
    assert run.data.tags["holdfast.param.lr"] == "0.2"
    assert warnings(caplog) == []


def test_a_server_that_is_down_is_warned_of_once_and_ends_nothing(tmp_path, caplog, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fit(tracking.MLflowCallback(tracking_uri="http://127.0.0.1:9"), tmp_path)
    (warning,) = [text for text in warnings(caplog) if "MLflow" in text]
    assert "does not have all reports" in warning
    caplog.clear()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # minutes
    fit(tracking.MLflowCallback(tracking_uri="http://127.0.0.1:9", flush_timeout_s=0.1), tmp_path, until=6)
    (warning,) = [text for text in warnings(caplog) if "MLflow" in text]
    assert "after 0.1 s" in warning


def test_wandb_offline(tmp_path, caplog, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "offline").mkdir()
    callback = tracking.WandbCallback(
        project="project", mode="offline", dir=tmp_path / "offline", step="step", flush_timeout_s=60
    )
    fit(callback, tmp_path)
    result = fit(callback, tmp_path, until=6)
    assert warnings(caplog) == []
    first, second = sorted((tmp_path / "offline" / "wandb").glob("offline-run-*/run-*.wandb"), key=os.path.getmtime)
    assert first.name == second.name  # the same id, so the service makes one run of them
    history, config, artifacts = [], {}, []
    for path in (first, second):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                history.append({"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item})
            elif record.WhichOneof("record_type") == "run":
                config |= {item.key: item.value_json for item in record.run.config.update}
            elif record.WhichOneof("record_type") in ("artifact", "request"):
                artifacts.append(record)
    assert [each["holdfast/step"] for each in history] == ["1", "2", "2", "3", "4", "5"]
    assert [float(each["loss/train"]) for each in history] == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert config["lr"] == "0.1"
    assert result.checkpoint.path in str(artifacts)


def wandb_records(path):
    """What an offline run's file holds: records of LevelDB's log format, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the end of a block is filled
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_without_a_key_is_an_error_where_it_is_made(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(train.ConfigurationError, match="WANDB_API_KEY"):
        tracking.WandbCallback(project="project")
    with pytest.raises(train.ConfigurationError, match="leave it out"):
        tracking.WandbCallback(id="mine")


def test_a_directory_that_is_none_is_refused():
    pytest.importorskip("tensorboard")
    with pytest.raises(train.ConfigurationError, match="local directory"):
        tracking.TensorBoardCallback("gs://bucket/logs")
    with pytest.raises(train.ConfigurationError, match="flush_timeout_s"):
        tracking.TensorBoardCallback(flush_timeout_s=-1)
