"""What the callbacks of XGBoost and of LightGBM have alike: what they report and store, and what they refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast as train
from holdfast import ConfigurationError, DataParallelTrainer, MetricsError, RunConfig, ScalingConfig

pytest.importorskip("xgboost", reason="XGBoost is not installed: pip install holdfast[xgboost]")
pytest.importorskip("lightgbm", reason="LightGBM is not installed: pip install holdfast[lightgbm]")


def by_xgboost(*options: dict[str, Any], model: Any = None, rounds: int = 3) -> None:
    """Trains with a callback for each of the options."""
    import numpy as np
    import xgboost

    from holdfast.xgboost import RayTrainReportCallback

    rows = np.arange(80.0).reshape(40, 2)
    data = xgboost.DMatrix(rows, rows[:, 0] / 10)
    xgboost.train(
        {"max_depth": 2, "nthread": 1, "eval_metric": "mae"},
        data,
        rounds,
        evals=[(data, "train"), (data, "valid")],
        xgb_model=model,
        callbacks=[RayTrainReportCallback(**each) for each in options],
        verbose_eval=False,
    )


def by_lightgbm(*options: dict[str, Any], model: Any = None, rounds: int = 3) -> None:
    """As `by_xgboost`."""
    import lightgbm
    import numpy as np

    from holdfast.lightgbm import RayTrainReportCallback

    rows = np.arange(80.0).reshape(40, 2)
    data = lightgbm.Dataset(rows, rows[:, 0] / 10)
    lightgbm.train(
        {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2, "metric": "mae"},
        data,
        rounds,
        valid_sets=[data, lightgbm.Dataset(rows, rows[:, 0] / 10, reference=data)],
        valid_names=["train", "valid"],
        init_model=model,
        callbacks=[RayTrainReportCallback(**each) for each in options],
    )


METRIC = {by_xgboost: "mae", by_lightgbm: "l1"}
trainings = pytest.mark.parametrize("training", [by_xgboost, by_lightgbm])


def callback_of(training: Callable[..., None]) -> Any:
    from holdfast import lightgbm, xgboost

    return (xgboost if training is by_xgboost else lightgbm).RayTrainReportCallback


def num_rounds(model: Any) -> int:
    found: int = model.current_iteration() if hasattr(model, "current_iteration") else model.num_boosted_rounds()
    return found


def fit(tmp_path: Path, work: Callable[..., Any], *, num_workers: int = 0) -> train.Result:
    return DataParallelTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(name="run", storage_path=tmp_path, progress="quiet"),
    ).fit()


@trainings
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (lambda _: {}, ["train-{}", "valid-{}"]),
        (lambda name: {"metrics": f"valid-{name}"}, ["valid-{}"]),
        (lambda name: {"metrics": [f"train-{name}"]}, ["train-{}"]),
        (lambda name: {"metrics": {"loss": f"valid-{name}"}}, ["loss"]),
        (lambda _: {"results_postprocessing_fn": lambda metrics: {"sum": sum(metrics.values())}}, ["sum"]),
    ],
)
def test_metrics_are_those_that_were_asked_for(
    training: Callable[..., None], options: Callable[[str], dict[str, Any]], names: list[str], tmp_path: Path
) -> None:
    result = fit(tmp_path, lambda: training(options(METRIC[training])))
    assert list(result.metrics) == [name.format(METRIC[training]) for name in names]


@trainings
def test_a_metric_that_is_not_there_is_an_error_that_names_those_that_are(
    training: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(train.WorkerGroupError) as failure:
        fit(tmp_path, lambda: training({"metrics": "loss"}))
    error = failure.value.worker_failures[0]
    assert isinstance(error, MetricsError)
    assert "'loss'" in str(error)
    assert "'train-{0}', 'valid-{0}'".format(METRIC[training]) in str(error)


@trainings
@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({}, [3]),
        ({"checkpoint_at_end": False}, []),
        ({"frequency": 2}, [2, 3]),
        ({"frequency": 2, "checkpoint_at_end": False}, [2]),
        ({"frequency": 3}, [3]),  # not twice
        ({"filename": "booster.json"}, [3]),
    ],
)
def test_checkpoints_are_stored_as_often_as_was_asked_for(
    training: Callable[..., None], options: dict[str, Any], stored: list[int], tmp_path: Path
) -> None:
    callback = callback_of(training)
    filename = options.get("filename", callback.CHECKPOINT_NAME)
    result = fit(tmp_path, lambda: training(options))
    rounds = []
    for checkpoint, _ in result.best_checkpoints:
        assert [file.path for file in checkpoint.files()] == [filename]
        rounds.append(num_rounds(callback.get_model(checkpoint, filename)))
    assert rounds == stored


@trainings
def test_what_cannot_work_is_refused_at_once(training: Callable[..., None]) -> None:
    with pytest.raises(ConfigurationError, match="frequency"):
        callback_of(training)(frequency=-1)
    with pytest.raises(ConfigurationError, match="filename"):
        callback_of(training)(filename="a/b.txt")


def test_workers_that_would_train_each_by_itself_are_refused(tmp_path: Path) -> None:
    def work() -> list[str]:
        said = []
        for training in (by_xgboost, by_lightgbm):
            with pytest.raises(
                ConfigurationError, match=r"there are 2 workers, and .* knows of 1: each would"
            ) as refused:
                training({})
            said.append(str(refused.value))
        return said

    said = fit(tmp_path, work, num_workers=2).return_value
    assert "XGBoostTrainer" in said[0]
    assert "LightGBMTrainer" in said[1]
    assert train.Run(tmp_path / "run").reports() == []


@trainings
def test_a_callback_that_was_given_twice_is_refused(training: Callable[..., None], tmp_path: Path) -> None:
    def work() -> None:
        training({})  # one after the other each has its own
        with pytest.raises(ConfigurationError, match="twice"):
            training({}, {})

    fit(tmp_path, work)


@trainings
def test_a_training_that_does_not_resume_is_told_so(
    training: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def resumes() -> None:
        checkpoint = train.get_checkpoint()
        training({}, model=callback_of(training).get_model(checkpoint) if checkpoint else None)
        training({})  # another one, on purpose

    def forgets() -> None:
        training({})

    with caplog.at_level(logging.WARNING, "holdfast"):
        fit(tmp_path, resumes)
        fit(tmp_path, resumes)
        assert "get_model" not in caplog.text
        fit(tmp_path, forgets)
    assert "_model=RayTrainReportCallback.get_model(get_checkpoint())" in caplog.text
