"""XGBoost and LightGBM alike: what would go wrong without a word is refused or told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast as train
from holdfast import ConfigurationError, DataParallelTrainer, RunConfig, ScalingConfig

pytest.importorskip("xgboost", reason="XGBoost is not installed: pip install holdfast[xgboost]")
pytest.importorskip("lightgbm", reason="LightGBM is not installed: pip install holdfast[lightgbm]")


def by_xgboost(num_callbacks: int = 1, model: Any = None, rounds: int = 2) -> None:
    import numpy as np
    import xgboost

    from holdfast.xgboost import RayTrainReportCallback

    rows = np.arange(80.0).reshape(40, 2)
    callbacks = [RayTrainReportCallback() for _ in range(num_callbacks)]
    data = xgboost.DMatrix(rows, rows[:, 0] / 10)
    xgboost.train({"max_depth": 2, "nthread": 1}, data, rounds, xgb_model=model, callbacks=callbacks)


def by_lightgbm(num_callbacks: int = 1, model: Any = None, rounds: int = 2) -> None:
    import lightgbm
    import numpy as np

    from holdfast.lightgbm import RayTrainReportCallback

    rows = np.arange(80.0).reshape(40, 2)
    params = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2}
    callbacks = [RayTrainReportCallback() for _ in range(num_callbacks)]
    data = lightgbm.Dataset(rows, rows[:, 0] / 10)
    lightgbm.train(params, data, rounds, init_model=model, callbacks=callbacks)


def get_model(training: Callable[..., None]) -> Any:
    from holdfast import lightgbm, xgboost

    package = xgboost if training.__name__ == "by_xgboost" else lightgbm
    checkpoint = train.get_checkpoint()
    return package.RayTrainReportCallback.get_model(checkpoint) if checkpoint else None


def fit(tmp_path: Path, work: Callable[..., Any], *, num_workers: int = 0) -> train.Result:
    return DataParallelTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(name="run", storage_path=tmp_path, progress="quiet"),
    ).fit()


def test_workers_that_would_train_each_by_itself_are_refused(tmp_path: Path) -> None:
    def work() -> list[str]:
        said = []
        for training in (by_xgboost, by_lightgbm):
            with pytest.raises(
                ConfigurationError, match=r"there are 2 workers, and .* knows of 1: each would"
            ) as refused:
                training()
            said.append(str(refused.value))
        return said

    said = fit(tmp_path, work, num_workers=2).return_value
    assert "XGBoostTrainer" in said[0]
    assert "LightGBMTrainer" in said[1]
    assert train.Run(tmp_path / "run").reports() == []


trainings = pytest.mark.parametrize("training", [by_xgboost, by_lightgbm])


@trainings
def test_a_callback_that_was_given_twice_is_refused(training: Callable[..., None], tmp_path: Path) -> None:
    def work() -> None:
        training()  # one after the other each has its own
        with pytest.raises(ConfigurationError, match="twice"):
            training(num_callbacks=2)

    fit(tmp_path, work)


@trainings
def test_a_training_that_does_not_resume_is_told_so(
    training: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def resumes() -> None:
        training(model=get_model(training))
        training()  # another one, on purpose

    def forgets() -> None:
        training()

    with caplog.at_level(logging.WARNING, "holdfast"):
        fit(tmp_path, resumes)
        fit(tmp_path, resumes)
        assert "get_model" not in caplog.text
        fit(tmp_path, forgets)
    assert "_model=RayTrainReportCallback.get_model(get_checkpoint())" in caplog.text
