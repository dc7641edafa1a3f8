"""What a user can get wrong, and what it costs: an error that names it, before anything is lost."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading

import pytest

import holdfast as train
from holdfast import CheckpointConfig, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from holdfast.torch import TorchTrainer


async def _async_loop():
    train.report({})


def _generator_loop():
    yield train.report({})


def _two_arguments(config, learning_rate):
    train.report(config)


def _keywords_only(*, learning_rate):
    train.report({"learning_rate": learning_rate})


def _validate(checkpoint, factor=1):
    return {"val": factor}


def _task(**fn_kwargs):
    return train.ValidationTaskConfig(fn_kwargs=fn_kwargs)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CheckpointConfig(checkpoint_score_order="best"), "must be 'max' or 'min', not 'best'"),
        (lambda: CheckpointConfig(checkpoint_score_order="maximum"), "not 'maximum'; did you mean 'max'?"),
        (lambda: RunConfig(on_upload_error="wran"), "must be 'raise' or 'warn', not 'wran'; did you mean 'warn'?"),
        (lambda: RunConfig(durability="Strict"), "not 'Strict'; did you mean 'strict'?"),
        (lambda: RunConfig(progress="plane"), "'plain' or 'quiet', not 'plane'; did you mean 'plain'?"),
        (lambda: RunConfig(progress=True), "'quiet', not True"),
        (lambda: CheckpointConfig(num_to_keep=0), "num_to_keep must be at least 1"),
        (lambda: CheckpointConfig(num_to_keep=1.5), "whole number"),
        (lambda: ScalingConfig(num_workers=-1), "num_workers must be at least 0"),
        (lambda: ScalingConfig(num_workers=True), "whole number"),
        (lambda: ScalingConfig(num_workers=(3, 2)), "minimum above its maximum"),
        (lambda: ScalingConfig(resources_per_worker={"GPU": 1}), "use_gpu=True"),
        (lambda: ScalingConfig(resources_per_worker="GPU"), "must be a dict"),
        (lambda: ScalingConfig(resources_per_worker={"gpu": 1}), "write 'GPU'"),
        (lambda: ScalingConfig(resources_per_worker={"num_cpus": 1}), "write 'CPU'"),
        (lambda: ScalingConfig(resources_per_worker={"TPU": 4}), "'TPU', which one machine cannot honour"),
        (lambda: ScalingConfig(resources_per_worker={"CPU": float("inf")}), "['CPU'] must be 0 or more, not inf"),
        (lambda: ScalingConfig(resources_per_worker={"GPU": float("nan")}, use_gpu=True), "['GPU'] must be 0 or more"),
        (lambda: ScalingConfig(use_gpu="yes"), "True or False"),
        (lambda: ScalingConfig(placement_strategy="ANY"), "PACK"),
        (lambda: RunConfig(worker_runtime_env={"env_vars": "A=1"}), "dict of names"),
        (lambda: RunConfig(worker_runtime_env={"env_vars": {"A=B": "x"}}), "no environment"),
        (lambda: RunConfig(callbacks=train.UserCallback()), "list of callbacks"),
        (lambda: RunConfig(max_pending_checkpoints=-1), "at least 0"),
        (lambda: RunConfig(restart_cache_bytes=-1), "at least 0"),
        (lambda: RunConfig(restart_cache_bytes="1 GiB"), "whole number"),
        (lambda: RunConfig(on_upload_error="ignore"), "'raise' or 'warn'"),
        (lambda: DataParallelTrainer(_async_loop), "an async function"),
        (lambda: DataParallelTrainer(_generator_loop), "a generator"),
        (lambda: DataParallelTrainer(_two_arguments), "_two_arguments(config, learning_rate) cannot be called"),
        (lambda: DataParallelTrainer(_two_arguments), "Take 'learning_rate' from the config"),
        (lambda: DataParallelTrainer(_keywords_only), "Take 'learning_rate' from the config"),
        (lambda: DataParallelTrainer(functools.partial(_two_arguments, config={})), "Take 'learning_rate'"),
        (lambda: train.ValidationConfig(_keywords_only), "its first argument is the checkpoint"),
        (lambda: train.ValidationConfig(_validate, _task(factr=2)), "_validate(checkpoint, factor=…) does not take"),
        (lambda: train.ValidationConfig(_validate, _task(factr=2)), "did you mean 'factor'?"),
        (lambda: FailureConfig(max_failures=-2), "at least -1"),
        (lambda: RunConfig(name="a/b"), "'/'"),
        (lambda: RunConfig(name=".hidden"), "begin with a dot"),
        (lambda: RunConfig(name="what?", storage_path="s3://bucket/runs"), "'?', which in a URL begins its options"),
        (lambda: RunConfig(name=""), "must not be empty"),
        (lambda: RunConfig(durability="maybe"), "durability"),
        (lambda: RunConfig(progress="loud"), "progress"),
        (lambda: RunConfig(storage_path=""), "empty"),
        (lambda: RunConfig(storage_path=5), "path or URI"),
        (lambda: RunConfig(failure_config=3), "FailureConfig"),
        (lambda: RunConfig(worker_runtime_env={"pip": ["x"]}), "pip"),
        (lambda: DataParallelTrainer(5), "must be a function"),
        (lambda: DataParallelTrainer(print, train_loop_config=[1]), "must be a dict"),
        (lambda: DataParallelTrainer(print, datasets={"train": 1}), "datasets"),
        (lambda: DataParallelTrainer(print, run_config=RunConfig(callbacks=[5])), "UserCallback"),
    ],
)
def test_a_wrong_configuration_fails_where_it_is_written(make, text):
    with pytest.raises(train.ConfigurationError) as caught:
        make()
    assert text in str(caught.value)


def _hands_on(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def _supplies(function):
    @functools.wraps(function)
    def wrapper(config):
        return function(config, learning_rate=0.1)

    return wrapper


class _Callable:
    def __call__(self, config, *, verbose=False):
        return config

    def method(self):
        return None


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda: None, None),
        (lambda config: config, {"a": 1}),
        (lambda config=None: config, {"a": 1}),
        (lambda *args: args[0], {"a": 1}),
        (lambda *, verbose=False: verbose, False),
        (lambda **options: options, {}),
        (functools.partial(lambda config, rate: config, rate=0.1), {"a": 1}),
        (functools.partial(lambda config: config, {"b": 2}), {"b": 2}),
        (_hands_on(lambda: None), None),
        (_hands_on(lambda config: config), {"a": 1}),
        (_supplies(lambda config, learning_rate: config), {"a": 1}),
        (_Callable(), {"a": 1}),
        (_Callable().method, None),
        (dict, {"a": 1}),
    ],
)
def test_a_function_gets_the_config_if_it_takes_one(tmp_path, function, found):
    config = RunConfig(name="run", storage_path=tmp_path, progress="quiet")
    scaling = ScalingConfig(num_workers=0)
    made = DataParallelTrainer(function, train_loop_config={"a": 1}, run_config=config, scaling_config=scaling)
    assert made.fit().return_value == found


@pytest.mark.parametrize("call", ["report({})", "get_checkpoint()", "get_context()", "get_all_reported_checkpoints()"])
def test_outside_a_worker_the_functions_say_where_they_belong(call):
    with pytest.raises(train.OutsideWorkerError, match=r"fit\(\)"):
        eval(f"train.{call}", {"train": train})


def trainer(function, path, **options):
    return DataParallelTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=options.pop("workers", 1), use_gpu=options.pop("use_gpu", False)),
        run_config=RunConfig(name="run", storage_path=path, **{"progress": "quiet", **options}),
    )


def test_too_few_gpus_are_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(train.ResourceError, match="needs 2 GPUs"):
        trainer(print, tmp_path, workers=2, use_gpu=True).fit()
    assert list(tmp_path.iterdir()) == []


def test_an_unpicklable_function_names_the_variable(tmp_path):
    lock = threading.Lock()
    with pytest.raises(train.SerializationError, match="'lock'"):
        trainer(lambda: lock, tmp_path).fit()


def test_a_storage_path_that_cannot_be_written_fails_before_a_worker_starts(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    started = tmp_path / "started"
    with pytest.raises(train.StorageError, match="file"):
        trainer(lambda: started.touch(), file / "below").fit()
    with pytest.raises(train.StorageError):
        trainer(lambda: started.touch(), "/proc/holdfast").fit()
    assert not started.exists()


def test_fit_inside_a_function_is_refused(tmp_path):
    def loop():
        with pytest.raises(train.ConfigurationError, match="inside a training function"):
            DataParallelTrainer(print).fit()

    trainer(loop, tmp_path).fit()


def test_words_in_the_place_of_an_enumerations_member_are_told_which(tmp_path):
    def loop():
        with pytest.raises(train.ConfigurationError) as caught:
            train.report({}, checkpoint_upload_mode="async")
        assert "must be CheckpointUploadMode.ASYNC, CheckpointUploadMode.SYNC or " in str(caught.value)
        assert "not 'async'; did you mean CheckpointUploadMode.ASYNC?" in str(caught.value)
        with pytest.raises(train.ConfigurationError, match=r"did you mean CheckpointConsistencyMode\.COMMITTED\?"):
            train.get_all_reported_checkpoints(consistency_mode="commited")

    trainer(loop, tmp_path).fit()


def test_the_import_is_fast_and_takes_no_framework_along():
    code = (
        "import time, sys; t = time.process_time(); import holdfast; d = time.process_time() - t; "
        "print(d, [m for m in ('torch', 'numpy', 'pandas', 'rich', 'ray', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, loaded = out.split(maxsplit=1)
    assert loaded.strip() == "[]"
    # A fifth of a second or less, on a machine that is not slow; what it is on a quiet one stands in docs/benchmarks.md.
    assert float(seconds) < 5


def test_what_cannot_work_is_told_of_where_it_is_given(tmp_path):
    def make(**options):
        return train.DataParallelTrainer(lambda: None, **options)

    for place, says in (
        ("s3://bucket/exp?regoin=x", "regoin"),
        ("s3:/bucket/exp", "was a URL once"),
    ):
        with pytest.raises(train.ConfigurationError, match=says):
            make(run_config=train.RunConfig(storage_path=place))
    with pytest.raises(train.ConfigurationError, match="kye"):
        make(run_config=train.RunConfig(storage_path="s3://bucket/exp", storage_options={"kye": 1}))
    with pytest.raises(train.ConfigurationError, match="resume_from= begins"):
        make(resume_from_checkpoint=tmp_path)
    pytest.importorskip("torch")
    with pytest.raises(train.ConfigurationError, match="resume_from= begins"):
        TorchTrainer(lambda: None, resume_from_checkpoint=tmp_path)


def test_a_function_that_stores_a_checkpoint_is_checked_before_it_is_called(tmp_path):
    def loop():
        checkpoint = train.Checkpoint(str(tmp_path))
        for upload, says in ((lambda checkpoint: checkpoint, r"\(checkpoint, name\)"), ("name", "must be a function")):
            with pytest.raises(train.ConfigurationError, match=says):
                train.report({}, checkpoint, checkpoint_upload_fn=upload)
        with pytest.raises(train.ConfigurationError, match="leave one of them out"):
            train.report(
                {},
                checkpoint,
                checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD,
                checkpoint_upload_fn=lambda checkpoint, name: checkpoint,
            )

    train.DataParallelTrainer(
        loop,
        scaling_config=train.ScalingConfig(num_workers=0),
        run_config=train.RunConfig(name="run", storage_path=tmp_path, progress="quiet"),
    ).fit()
