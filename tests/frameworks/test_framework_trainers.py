"""The trainers of frameworks: one set of arguments, which `help()` shows."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pydoc
from typing import Any

import pytest

from holdfast import ConfigurationError, DataParallelTrainer, RunConfig, ScalingConfig

TRAINERS = ["torch.TorchTrainer", "tensorflow.TensorflowTrainer", "xgboost.XGBoostTrainer", "lightgbm.LightGBMTrainer"]


@pytest.fixture(params=TRAINERS)
def kind(request: pytest.FixtureRequest) -> Any:
    package, _, name = request.param.partition(".")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install holdfast[{package}]")
    return getattr(importlib.import_module(f"holdfast.{package}"), name)


def test_it_takes_and_shows_the_arguments_of_the_trainer_beneath(kind: Any) -> None:
    ours, beneath = inspect.signature(kind).parameters, inspect.signature(DataParallelTrainer).parameters
    config = kind.__name__.removesuffix("Trainer").lower() + "_config"
    assert ours.keys() == (beneath.keys() - {"backend_config"}) | {config}
    assert all(str(ours[name]) == str(beneath[name]) for name in ours.keys() - {config, "train_loop_per_worker"})
    shown = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    assert f"{config}:" in shown.partition("Methods")[0]
    assert "resume_from:" in shown.partition("Methods")[0]


def test_what_it_is_given_arrives(kind: Any) -> None:
    run_config = RunConfig(name="one", worker_runtime_env={"env_vars": {"TF_USE_LEGACY_KERAS": "0"}})
    trainer = kind(
        print, train_loop_config={}, run_config=run_config, scaling_config=ScalingConfig(2), metadata={"a": 1}
    )
    assert trainer.train_loop_per_worker is print
    assert (trainer.run_config, trainer.scaling_config.num_workers) == (run_config, 2)
    assert trainer.metadata == {"a": 1}
    assert type(trainer.backend_config).__name__ == kind.__name__.removesuffix("Trainer") + "Config"


def test_what_it_does_not_take_is_refused(kind: Any) -> None:
    config = kind.__name__.removesuffix("Trainer").lower() + "_config"
    with pytest.raises(ConfigurationError, match=f"{config} must be a"):
        kind(print, **{config: {}})
    with pytest.raises(ConfigurationError, match="run_config must be a RunConfig"):
        kind(print, run_config={})
    with pytest.raises(ConfigurationError, match=r"resume_from_checkpoint=\.\.\.\) is not taken here: .*resume_from="):
        kind(print, resume_from_checkpoint="runs/one")
    with pytest.raises(TypeError, match="unexpected keyword argument 'config'"):
        kind(print, config={})


@pytest.mark.parametrize("package", ["xgboost", "lightgbm"])
def test_what_the_trainers_of_trees_once_took_is_told_what_to_do_instead(package: str) -> None:
    pytest.importorskip(package)
    module = importlib.import_module(f"holdfast.{package}")
    trainer = module.XGBoostTrainer if package == "xgboost" else module.LightGBMTrainer
    with pytest.raises(ConfigurationError, match=rf"calls {package}\.train\(\.\.\.\)"):
        trainer(params={"eta": 0.1}, label_column="y", num_boost_round=10, datasets={"train": object()})
