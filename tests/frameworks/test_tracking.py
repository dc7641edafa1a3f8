"""Real runs into the trackers' own libraries, read back by those."""

from __future__ import annotations

import math
import os
import pty
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import holdfast as train
from holdfast import tracking
from holdfast.tracking import Entry
from holdfast.tracking.entry import parameters_of
from holdfast.tracking.mlflow_run import MLflowRun
from support.waiting import wait_until

CONFIG = {"lr": 0.1, "net": {"layers": [8, 8]}}
CONTEXT = train.RunContext("5e55" * 8, "run", "/runs/run", attempt=1)
# What a tracker takes one by one, if at all, and none may lose the others for.
ODD_METRICS = {
    "_": 1.0,
    ".": 2.0,
    "..": 3.0,
    "/a/../b": 4.0,
    "é [x]": 5.0,
    "n" * 300: 6.0,
    "_step": 7.0,
    "huge": 1e300,
    "wide": 2**64 - 1,
}
ODD_PARAMETERS = parameters_of(
    {"": 1, ".": "\0\ud800", "n" * 300: "v" * 9000, "huge": 10**400, "nan": math.nan, "wide": 2**64 - 1}
)


def loop(config):
    """Three reports, a SIGKILL of rank 1 in the first attempt after the second, and steps that are made again.

    A tracker has rank 0's metrics, and those of rank 1 are others.
    """
    first, rank = 1, train.get_context().get_world_rank()
    if checkpoint := train.get_checkpoint():
        with checkpoint.as_directory() as directory:
            first = int(Path(directory, "step").read_text()) + 1
    for step in range(first, config.get("until", 4)):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "step").write_text(str(step))
            # Every second one only: after the failure step 2 is made again.
            checkpoint = train.Checkpoint.from_directory(directory) if step % 2 else None
            metrics = {"loss": {"train": 1 / step + rank}, "step": step + 100 * rank, "odd": math.nan, "note": "x"}
            train.report(metrics, checkpoint)
        if step == 2 and first == 1 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(callback, tmp_path, **config):
    return train.DataParallelTrainer(
        loop,
        train_loop_config={**CONFIG, **config},
        scaling_config=train.ScalingConfig(num_workers=2),
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

    callback = tracking.TensorBoardCallback(tmp_path / "logs", step="step", flush_timeout_s=60)
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


def scalars(directory):
    from tensorboard.backend.event_processing import event_accumulator

    read = event_accumulator.EventAccumulator(str(directory))
    read.Reload()
    return {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_forgets_later_steps_only_where_an_attempt_begins_again(tmp_path):
    pytest.importorskip("tensorboard")
    callback = tracking.TensorBoardCallback(tmp_path)
    tracker = callback.open_tracker(CONTEXT, ODD_PARAMETERS)
    first = [(1, {"a": 1}), (1, {"b": 1}), (2, {"a": 2}), (2, {"b": 2}), (3, {"a": 3}), (1, {"late": 1})]
    tracker.log([Entry(step, metrics, attempt=1) for step, metrics in first])
    tracker.log([Entry(2, {"a": 20}, attempt=2), Entry(2, {"b": 20}, attempt=2), Entry(2, ODD_METRICS, attempt=2)])
    tracker.finish(tracking.Ending.SUCCEEDED)
    found = scalars(*tmp_path.iterdir())
    assert found.pop("a") == [(1, 1), (2, 20)]
    assert found.pop("b") == [(1, 1), (2, 20)]
    assert found.pop("late") == [(1, 1)]
    assert found.pop("huge") == [(2, math.inf)]  # what it draws has 32 bits
    assert found == {tag: [(2, pytest.approx(value))] for tag, value in ODD_METRICS.items() if tag != "huge"}


def test_tensorboard_goes_on_in_another_file_after_the_disk_was_full(tmp_path):
    pytest.importorskip("tensorboard")
    callback = tracking.TensorBoardCallback(tmp_path)
    entries = [Entry(step, {"a": step}) for step in range(1, 4)]
    tracker = callback.open_tracker(CONTEXT, {})
    tracker.log(entries[:1])
    (file,) = tmp_path.glob("*/*")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 60, before[1]))  # a part of the second
    try:
        with pytest.raises(OSError, match="too large"):
            tracker.log(entries[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    tracker = callback.open_tracker(CONTEXT, {})
    tracker.log(entries[1:])
    tracker.finish(tracking.Ending.SUCCEEDED)
    assert scalars(*tmp_path.iterdir()) == {"a": [(1, 1), (2, 2), (3, 3)]}


def test_a_report_without_a_step_is_left_out_and_told_of_once(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    callback = tracking.TensorBoardCallback(tmp_path, step="at/step", flush_timeout_s=60)
    reports = [{"a": 1, "at": {"stop": 1}}, {"b": 1}, {"a": 2, "at": {"step": 5}}, {"a": 3}]
    for report, metrics in enumerate(reports, 1):
        callback.after_report(train.RunContext(CONTEXT.run_id, "run", "", 1, report), [metrics], None)
    callback.after_run(CONTEXT, None)
    assert scalars(*tmp_path.iterdir())["a"] == [(5, 2), (5, 3)]
    (warning,) = warnings(caplog)
    assert "leaves out report 1" in warning
    assert "step='at/step'" in warning
    assert "'at/stop'" in warning


def test_mlflow(tmp_path, caplog, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the one store that mlflow-skinny has without a server
    uri = (tmp_path / "mlruns").as_uri()
    callback = tracking.MLflowCallback("experiment", tracking_uri=uri, tags={"team": "a"}, flush_timeout_s=60)
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


def test_a_name_that_mlflow_refuses_costs_the_others_nothing(tmp_path, caplog, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    callback = tracking.MLflowCallback(tracking_uri=uri)
    tracker = callback.open_tracker(CONTEXT, ODD_PARAMETERS)
    # Each is a file, and so cannot be a directory.
    for step in (1, 2):
        tracker.log([Entry(step, {**ODD_METRICS, "loss": 1, "loss/train": 2}, "/checkpoint")])
    tracker.finish(tracking.Ending.SUCCEEDED)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs(["0"])
    found = run.data.metrics
    assert len(found) == 8  # "_", "." and ".." are one
    assert (found["huge"], found["loss"], found["a/_/b"], found["_step"]) == (1e300, 1, 4, 7)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "huge")][-1] == 2
    assert len(run.data.params) == 5
    assert run.data.params["n" * 250] == "v" * 6000
    assert run.data.tags["holdfast.checkpoint"] == "/checkpoint"
    (warning,) = warnings(caplog)
    assert "'loss/train'" in warning


def test_a_server_that_is_down_is_told_of_when_it_is_noticed_and_ends_nothing(tmp_path, caplog, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("http_proxy", raising=False)
    uri = "http://127.0.0.1:9"
    fit(tracking.MLflowCallback(tracking_uri=uri, flush_timeout_s=60), tmp_path)
    first, end = warnings(caplog)
    assert "nobody answers at 127.0.0.1:9" in first
    assert "MLflow lacks 4 reports" in end
    # One that goes away later: what it has not taken, it gets when it is back.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = SimpleNamespace(info=SimpleNamespace(run_id="5e55"), data=SimpleNamespace(params={}))
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1"):
        MLflowRun(mlflow.MlflowClient(uri), run, {}).log([Entry(1, {"loss": 1, "other": 2})])


def test_an_mlflow_that_cannot_go_where_its_uri_leads_says_so_when_it_is_made(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)  # as it is with mlflow-skinny alone
    with pytest.raises(train.ConfigurationError, match=r"sqlite:.*mlflow\.db.*sqlalchemy.*holdfast\[mlflow\]"):
        tracking.MLflowCallback()
    with pytest.raises(train.ConfigurationError, match=r"postgresql\+psycopg2://db/mlflow") as raised:
        tracking.MLflowCallback(tracking_uri="postgresql+psycopg2://me:secret@db/mlflow")
    assert "secret" not in str(raised.value)
    with pytest.raises(train.ConfigurationError, match="MLFLOW_ALLOW_FILE_STORE"):
        tracking.MLflowCallback(tracking_uri="mlruns")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, about MLflow
def test_mlflow_without_a_uri_makes_a_database_that_has_all_at_the_end(tmp_path, caplog, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    callback = tracking.MLflowCallback(flush_timeout_s=60)
    fit(callback, tmp_path)  # which makes the database
    assert warnings(caplog) == []
    assert Path("mlflow.db").exists()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    history = client.get_metric_history(run.info.run_id, "loss/train")
    assert [(each.step, each.value) for each in history] == [(1, 1), (2, 1 / 2), (3, 1 / 2), (4, 1 / 3)]
    tracker = callback.open_tracker(CONTEXT, ODD_PARAMETERS)
    tracker.log([Entry(1, ODD_METRICS)])
    (run,) = client.search_runs(["0"], f"tags.`holdfast.run_id` = '{CONTEXT.run_id}'")
    assert len(run.data.metrics) == 7
    assert len(run.data.params) == 5


def test_wandb_offline(tmp_path, caplog, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "offline").mkdir()
    callback = tracking.WandbCallback(
        project="project", mode="offline", dir=str(tmp_path / "offline"), step="step", flush_timeout_s=60
    )
    fit(callback, tmp_path)
    result = fit(callback, tmp_path, until=6)
    assert warnings(caplog) == []
    files = list((tmp_path / "offline" / "wandb").glob("offline-run-*/run-*.wandb"))
    # W&B's own process writes them, and may do so when its `finish()` has returned.
    wait_until(
        lambda: all(any(each.HasField("exit") for each in wandb_records(path)) for path in files), "all is written"
    )
    first, second = sorted(files, key=os.path.getmtime)
    assert first.name == second.name  # the same id, so the service makes one run of them
    history, config, artifacts, own_steps = [], {}, [], []
    for path in (first, second):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                own_steps.append(record.history.step.num)
                history.append({"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item})
            elif record.WhichOneof("record_type") == "run":
                config |= {item.key: item.value_json for item in record.run.config.update}
            elif record.WhichOneof("record_type") in ("artifact", "request"):
                artifacts.append(record)
    assert [each["holdfast/step"] for each in history] == ["1", "2", "2", "3", "4", "5"]
    assert [float(each["loss/train"]) for each in history] == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert own_steps == [1, 2, 3, 4, 5, 6]  # the second directory goes on where the first ended
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
        if len(data) < at + 7 + size:  # the rest of it is about to be written
            return
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


IN_TERMINAL = """
import holdfast, sys
from holdfast.tracking import WandbCallback

for options in ({"project": "p"}, {"id": "mine"}, {"projct": "p"}, {"config": "file.yaml"}):
    try:
        WandbCallback(**options)
    except holdfast.ConfigurationError as error:
        print(error)
"""


@pytest.mark.parametrize("settings", ["", "mode = offline"])
def test_wandb_without_a_key_is_an_error_where_it_is_made_and_asks_no_terminal(settings, tmp_path):
    pytest.importorskip("wandb")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\n{settings}\n")  # `wandb offline` writes this
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", IN_TERMINAL],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
                "HOME": str(tmp_path),
                "TERM": "xterm",
            },
            cwd=tmp_path,
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            text=True,
            timeout=280,
            check=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    said = done.stdout.splitlines()
    if not settings:
        assert "WANDB_API_KEY" in said.pop(0)
    assert "leave it out" in said[0]
    assert "'projct'" in said[1]
    assert "config must be a dict" in said[2]


def test_a_directory_that_is_none_is_refused():
    pytest.importorskip("tensorboard")
    with pytest.raises(train.ConfigurationError, match="local directory"):
        tracking.TensorBoardCallback("gs://bucket/logs")
    with pytest.raises(train.ConfigurationError, match="flush_timeout_s"):
        tracking.TensorBoardCallback(flush_timeout_s=-1)
