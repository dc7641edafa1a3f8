"""Keras on TensorFlow and on torch, and tf_keras under TensorFlow's strategy: a worker that is lost changes no weight."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import holdfast as train
from holdfast import ConfigurationError, FailureConfig, MetricsError, RunConfig, ScalingConfig
from holdfast.tensorflow import TensorflowConfig, TensorflowTrainer
from holdfast.tensorflow.keras import ReportCheckpointCallback
from holdfast.torch import TorchTrainer

# Looked for, not imported: neither is to be loaded in the tests' own process.
if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed: pip install holdfast[tensorflow]", allow_module_level=True)

EPOCHS = 4
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="TensorFlow is not installed: pip install holdfast[tensorflow]",
)
needs_tf_keras = pytest.mark.skipif(
    importlib.util.find_spec("tf_keras") is None, reason="tf_keras is not installed: pip install tf_keras"
)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed: pip install holdfast[torch]"
)


def run_config(tmp_path: Path, **variables: str) -> RunConfig:
    return RunConfig(
        name="run",
        storage_path=tmp_path,
        progress="quiet",
        failure_config=FailureConfig(max_failures=1),
        worker_runtime_env={"env_vars": {**ENVIRONMENT, **variables}},
    )


def in_two_lives(config: dict[str, Any]) -> dict[str, Any]:
    """Trains twice: a model that nothing disturbs, and one that is resumed after a kill in its third epoch."""
    import keras
    import numpy as np

    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    x = np.random.default_rng(0).random((64, 4)).astype("float32")
    y = x.sum(1, keepdims=True)

    def build() -> Any:
        keras.utils.set_random_seed(1)
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dropout(0.2, seed=3), layers.Dense(1)]
        )
        model.compile("adam", "mse")
        return model

    def fit(model: Any, initial_epoch: int, callbacks: list[Any]) -> list[Any]:
        if world_size > 1:
            import torch.distributed as dist

            def mean(gradient: Any) -> Any:
                dist.all_reduce(gradient)
                return gradient / world_size

            for variable in model.trainable_variables:
                variable.value.register_hook(mean)
        model.fit(
            x[rank::world_size],
            y[rank::world_size],
            batch_size=16 // world_size,
            shuffle=False,
            epochs=config["epochs"],
            initial_epoch=initial_epoch,
            callbacks=callbacks,
            verbose=0,
        )
        return [np.asarray(weight).tolist() for weight in model.get_weights()]

    checkpoint = train.get_checkpoint()

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if checkpoint is None and rank == world_size - 1 and int(self.model.optimizer.iterations) == 10:
                os.kill(os.getpid(), signal.SIGKILL)

    model = ReportCheckpointCallback.get_model(checkpoint) if checkpoint else build()
    first = ReportCheckpointCallback.get_initial_epoch(checkpoint)
    callback = ReportCheckpointCallback()
    assert isinstance(callback, ReportCheckpointCallback)
    weights = fit(model, first, [callback, Kill()])
    return {
        "first": first,
        "weights": weights,
        "calm": fit(build(), 0, []),
        "backend": keras.backend.backend(),
        "steps": int(model.optimizer.iterations),
    }


def check(result: train.Result, backend: str) -> None:
    found = result.return_value
    assert (found["backend"], found["first"]) == (backend, 2)
    assert found["steps"] == EPOCHS * 4
    assert found["weights"] == found["calm"]
    reports = train.Run(result.path).reports()
    assert [report["attempt"] for report in reports] == [1, 1, 2, 2]
    assert list(result.metrics) == ["loss"]
    assert sorted(file.path for file in result.checkpoint.files()) == ["model.keras", "progress.json"]


@needs_tensorflow
def test_a_model_on_tensorflow_goes_on_where_it_was(tmp_path: Path) -> None:
    result = TensorflowTrainer(
        in_two_lives, train_loop_config={"epochs": EPOCHS}, run_config=run_config(tmp_path)
    ).fit()
    check(result, "tensorflow")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed: pip install jax")
def test_a_model_on_jax_goes_on_where_it_was(tmp_path: Path) -> None:
    result = train.DataParallelTrainer(
        in_two_lives, train_loop_config={"epochs": EPOCHS}, run_config=run_config(tmp_path, KERAS_BACKEND="jax")
    ).fit()
    check(result, "jax")


@needs_torch
def test_a_model_on_torch_goes_on_where_it_was_on_both_workers(tmp_path: Path) -> None:
    result = TorchTrainer(
        in_two_lives,
        train_loop_config={"epochs": EPOCHS},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=run_config(tmp_path, KERAS_BACKEND="torch"),
    ).fit()
    check(result, "torch")


def mirrored(config: dict[str, Any]) -> dict[str, Any]:
    """As above, with the strategy's own data, and a layer whose variables are the mean of all ranks'."""
    import numpy as np
    import tensorflow as tf

    from holdfast.tensorflow import prepare_dataset_shard

    rank = train.get_context().get_world_rank()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x = np.random.default_rng(0).random((64, 4)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x.sum(1, keepdims=True))).batch(16)

    def build() -> Any:
        tf.keras.utils.set_random_seed(1)
        layers = tf.keras.layers
        model = tf.keras.Sequential(
            [layers.Input((4,)), layers.Dense(8, activation="relu"), layers.BatchNormalization(), layers.Dense(1)]
        )
        model.compile("adam", "mse")
        return model

    checkpoint = train.get_checkpoint()

    class Kill(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if checkpoint is None and rank == 1 and int(self.model.optimizer.iterations.numpy()) == 10:
                os.kill(os.getpid(), signal.SIGKILL)

    with strategy.scope():
        model = ReportCheckpointCallback.get_model(checkpoint) if checkpoint else build()
        calm = build()
    first = ReportCheckpointCallback.get_initial_epoch(checkpoint)
    epochs = config["epochs"]
    saved, save = [], model.save
    model.save = lambda path: save(saved.append(path) or path)
    callback = ReportCheckpointCallback(metrics={"error": "loss"})
    assert isinstance(callback, tf.keras.callbacks.Callback)
    model.fit(data, epochs=epochs, initial_epoch=first, callbacks=[callback, Kill()], verbose=0)
    calm.fit(data, epochs=epochs, verbose=0)
    # On either rank: what is left of them by a crash is removed at the next attempt.
    assert len(saved) == epochs - first
    assert all("/.holdfast/staging/" in path for path in saved)
    return {
        "first": first,
        "replicas": strategy.num_replicas_in_sync,
        "keras": tf.keras.__name__,
        "weights": [weight.numpy().tolist() for weight in model.trainable_variables],
        "calm": [weight.numpy().tolist() for weight in calm.trainable_variables],
        "cluster": json.loads(os.environ["TF_CONFIG"]),
        "policy": prepare_dataset_shard(data).options().experimental_distribute.auto_shard_policy.name,
    }


@needs_tensorflow
@needs_tf_keras
def test_a_mirrored_model_goes_on_where_it_was(tmp_path: Path) -> None:
    result = TensorflowTrainer(
        mirrored,
        train_loop_config={"epochs": EPOCHS},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=run_config(tmp_path),
    ).fit()
    found = result.return_value
    assert (found["first"], found["replicas"]) == (2, 2)
    assert "tf_keras" in found["keras"]
    assert found["weights"] == found["calm"]
    assert found["cluster"]["task"] == {"type": "worker", "index": 0}
    assert len(set(found["cluster"]["cluster"]["worker"])) == 2
    assert found["policy"] == "OFF"
    assert list(result.metrics) == ["error"]


# A program of its own, in which TensorFlow is not installed.
IN_PROGRAM = """
import json, os, sys

from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ("tensorflow", "tf_keras") else found(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
import holdfast as train
from holdfast.tensorflow.keras import ReportCheckpointCallback

def work(config):
    import keras
    import numpy as np

    class Own(ReportCheckpointCallback):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            seen.append(epoch)

    def fit(validation_freq=1, initial_epoch=0, others=(), **options):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=["mae"])
        data = x, x[:, :1]
        fitted = {"epochs": 2, "initial_epoch": initial_epoch, "validation_data": data, "validation_freq": validation_freq}
        callbacks = [Own(**options), *(ReportCheckpointCallback(**each) for each in others)]
        model.fit(*data, batch_size=4, verbose=0, callbacks=callbacks, **fitted)

    x = np.ones((8, 2), "float32")
    for options in json.loads(sys.argv[1]):
        fit(**options)
        train.report({"case": "ends"})
    for options in json.loads(sys.argv[2]):
        try:
            fit(**options)
        except train.HoldfastError as error:
            errors.append([type(error).__name__, str(error)])

seen, errors = [], []
result = train.DataParallelTrainer(
    work,
    scaling_config=train.ScalingConfig(num_workers=0),
    run_config=train.RunConfig(name="run", storage_path=sys.argv[3], progress="quiet"),
).fit()
run = train.Run(result.path)
print(json.dumps({
    "epochs": seen,
    "initial": [ReportCheckpointCallback.get_initial_epoch(each.checkpoint) for each in run.checkpoints],
    "metrics": [sorted(report["metrics"]) for report in run.reports()],
    "isolated": "tensorflow" not in sys.modules,
    "errors": errors,
}))
"""


@needs_torch
def test_events_and_metrics_are_those_that_were_asked_for_without_tensorflow(tmp_path: Path) -> None:
    cases = [
        {},
        {"checkpoint_on": "train_end", "metrics": "val_loss"},
        {"checkpoint_on": ["train_batch_end"], "report_metrics_on": [], "metrics": ["loss"]},
        {"checkpoint_on": [], "report_metrics_on": ["test_end"], "metrics": {"error": "mae"}},
        {"checkpoint_on": [], "validation_freq": 2},
        {"checkpoint_on": [], "validation_freq": 2, "metrics": {"loss": "loss", "error": "val_loss"}},
        {
            "checkpoint_on": "train_end",
            "metrics": "loss",
            "initial_epoch": 2,
        },  # resumed, and there is nothing left to do
        {"checkpoint_on": "train_end", "report_metrics_on": [], "others": [{"checkpoint_on": [], "metrics": "loss"}]},
    ]
    refused = [{"metrics": "accuracy"}, {"checkpoint_on": "end_of_epoch"}, {"others": [{}]}]
    done = subprocess.run(
        [sys.executable, "-c", IN_PROGRAM, json.dumps(cases), json.dumps(refused), str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    everything, ends = ["loss", "mae", "val_loss", "val_mae"], ["case"]
    assert found["metrics"] == [
        *[everything, everything, ends],
        *[["val_loss"], ["val_loss"], ["val_loss"], ends],
        *[["loss"], ["loss"], ["loss"], ["loss"], ends],
        *[["error"], ["error"], ends],
        *[["loss", "mae"], everything, ends],
        *[["loss"], ["error", "loss"], ends],
        ends,
        *[["loss"], ["loss"], everything, ends],
    ]
    assert found["initial"] == [1, 2, 2, 0, 0, 1, 1, 2]
    assert found["epochs"] == [*[0, 1] * 7, 0]  # the last is of the metric that was refused
    assert found["isolated"]
    assert done.stderr.count("'val_loss' cannot be reported") == 1
    (metric, about_metric), (event, about_event), (twice, about_twice) = found["errors"]
    assert (metric, event, twice) == (MetricsError.__name__, ConfigurationError.__name__, ConfigurationError.__name__)
    assert "'accuracy'" in about_metric
    assert "'val_mae'" in about_metric
    assert "'epoch_end'" in about_event
    assert "reported twice; leave one of them out" in about_twice


def test_what_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="TensorflowConfig"):
        TensorflowTrainer(print, tensorflow_config={})  # type: ignore[arg-type]


def test_keras_and_tensorflow_are_imported_when_they_are_needed() -> None:
    program = (
        "import sys, holdfast.tensorflow.keras, holdfast.tensorflow; "
        "assert not {'keras', 'tf_keras', 'tensorflow'} & {*sys.modules}; holdfast.tensorflow.TensorflowTrainer(print)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_function_in_this_process_leaves_no_variable_behind(tmp_path: Path) -> None:
    def work() -> Any:
        return json.loads(os.environ["TF_CONFIG"])

    result = TensorflowTrainer(
        work,
        tensorflow_config=TensorflowConfig(),
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="here", storage_path=tmp_path, progress="quiet"),
    ).fit()
    assert result.return_value["task"] == {"type": "worker", "index": 0}
    assert "TF_CONFIG" not in os.environ


@pytest.mark.parametrize(("replicas", "warns"), [(1, True), (2, False)])
def test_workers_that_train_each_a_model_of_its_own_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, replicas: int, warns: bool
) -> None:
    from holdfast.tensorflow import keras as callback

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 2)
    monkeypatch.setattr(callback, "get_context", lambda: context)
    model = SimpleNamespace(distribute_strategy=SimpleNamespace(num_replicas_in_sync=replicas))
    callback._warn_of_lone_training(model)
    assert ("each of the 2 workers trains a model of its own" in caplog.text) == warns
