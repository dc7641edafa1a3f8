"""LightGBM: workers train one model, and one that is lost changes no tree of it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast as train
from holdfast import FailureConfig, RunConfig, ScalingConfig
from holdfast.lightgbm import LightGBMTrainer, RayTrainReportCallback, get_network_params, network

pytest.importorskip("lightgbm", reason="LightGBM is not installed: pip install holdfast[lightgbm]")

ROUNDS = 9


def boost(config: dict[str, Any]) -> tuple[int, str]:
    """Trains to the end from where the run is; by how many rounds it was resumed, and the trees."""
    import lightgbm
    import numpy as np

    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    random = np.random.default_rng(0)
    rows = random.random((600, 6))
    target = 3 * rows[:, 0] + rows[:, 1] ** 2 + 0.1 * random.random(600)

    checkpoint = train.get_checkpoint()
    model = RayTrainReportCallback.get_model(checkpoint) if checkpoint else None
    done = model.current_iteration() if model else 0

    def kill(env: Any) -> None:
        if config["killed"] and checkpoint is None and (rank, env.iteration) == (1, 4):
            os.kill(os.getpid(), signal.SIGKILL)

    trees = ""
    for _ in range(config["trainings"]):
        data = lightgbm.Dataset(rows[rank::world_size], target[rank::world_size])
        booster = lightgbm.train(
            {
                "objective": "regression",
                "num_leaves": 7,
                "verbosity": -1,
                "num_threads": 1,
                **config["learner"],
                **get_network_params(),
            },
            data,
            config["rounds"] - done,
            valid_sets=[data],
            init_model=model,
            callbacks=[RayTrainReportCallback(frequency=2), kill],
        )
        trees = booster.model_to_string().partition("\nparameters:")[0]
    return done, trees


def fit(
    tmp_path: Path,
    name: str,
    *,
    killed: bool = False,
    trainings: int = 1,
    learner: dict[str, Any] | None = None,
) -> train.Result:
    together = {"tree_learner": "data", "pre_partition": True}
    return LightGBMTrainer(
        boost,
        train_loop_config={
            "killed": killed,
            "rounds": ROUNDS,
            "trainings": trainings,
            "learner": together if learner is None else learner,
        },
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


def test_a_worker_lost_between_checkpoints_changes_no_tree(tmp_path: Path) -> None:
    _, calm = fit(tmp_path, "calm").return_value
    hit = fit(tmp_path, "hit", killed=True)
    assert hit.return_value == (4, calm)
    errors = [metrics["training-l2"] for _, metrics in hit.best_checkpoints]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 5  # after 2, 4, 6 and 8 rounds, and at the end
    assert {report["attempt"] for report in train.Run(hit.path).reports()} == {1, 2}
    assert RayTrainReportCallback.get_model(hit.checkpoint).current_iteration() == ROUNDS


def test_one_function_trains_several_times(tmp_path: Path) -> None:
    assert len(fit(tmp_path, "twice", trainings=2).best_checkpoints) == 10


def test_ranks_that_would_train_each_by_itself_are_refused(tmp_path: Path) -> None:
    with pytest.raises(train.WorkerGroupError) as failure:
        fit(tmp_path, "alone", learner={})
    error = next(iter(failure.value.worker_failures.values()))  # the other one may be stopped before it gets there
    assert isinstance(error, train.ConfigurationError)
    assert "tree_learner='data'" in str(error)


def test_two_jobs_never_choose_the_same_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_PORTS", range(31_000, 31_200))
    try:
        first, second = network._free_ports(60), network._free_ports(60)
        assert len({*first, *second}) == 120
        with pytest.raises(train.WorkerStartError, match="ports"):
            network._free_ports(100)
    finally:
        network.forget()


def test_without_a_trainer_there_are_no_other_workers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "holdfast.lightgbm"):
        assert get_network_params() == {}
    assert "LightGBMTrainer" in caplog.text


def test_the_metrics_of_a_cross_validation_have_mean_and_deviation(tmp_path: Path) -> None:
    def work() -> None:
        import lightgbm
        import numpy as np

        rows = np.arange(80.0).reshape(40, 2)
        data = lightgbm.Dataset(rows, rows[:, 0] / 10)
        params = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2, "metric": "l2"}
        lightgbm.cv(
            params | get_network_params(), data, 2, nfold=2, stratified=False, callbacks=[RayTrainReportCallback()]
        )

    result = LightGBMTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="folds", storage_path=tmp_path, progress="quiet"),
    ).fit()
    assert list(result.metrics) == ["valid-l2-mean", "valid-l2-stdv"]


def test_lightgbm_is_imported_when_it_is_needed() -> None:
    program = "import sys, holdfast.lightgbm; assert 'lightgbm' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_lightgbm_that_is_missing_is_told_of_when_the_callback_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ImportError, match=r"pip install holdfast\[lightgbm\]"):
        RayTrainReportCallback()


def noise(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on what can hardly be learnt, so that early stopping ends it; what is left of the training."""
    import lightgbm
    import numpy as np

    checkpoint = train.get_checkpoint()
    model = RayTrainReportCallback.get_model(checkpoint) if checkpoint else None
    done = model.current_iteration() if model else 0

    def kill(env: Any) -> None:
        if checkpoint is None and env.iteration == config["killed_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    kill.order = 50  # type: ignore[attr-defined] # behind what is reported
    random = np.random.default_rng(3)
    rows = random.random((160, 3))
    target = rows[:, 0] + random.normal(size=160)
    data = lightgbm.Dataset(rows[:100], target[:100])
    stopping = lightgbm.early_stopping(config["patience"], min_delta=0.001, verbose=False)
    booster = lightgbm.train(
        {"objective": "l2", "metric": ["l2", "l1"], "num_leaves": 4, "verbosity": -1, "num_threads": 1},
        data,
        60 - done,
        valid_sets=[data, lightgbm.Dataset(rows[100:], target[100:], reference=data)],
        init_model=model,
        callbacks=[RayTrainReportCallback(frequency=2, early_stopping=stopping), kill],
        keep_training_booster=True,  # else the rounds after the best are taken away
    )
    return {
        "done": done,
        "best": booster.best_iteration,
        "score": dict(booster.best_score["valid_1"]),
        "rounds": booster.current_iteration(),
        "trees": booster.model_to_string(num_iteration=-1).partition("\nparameters:")[0],
    }


def fit_noise(tmp_path: Path, name: str, killed_at: int = -1, patience: int = 6) -> train.Result:
    return train.DataParallelTrainer(
        noise,
        train_loop_config={"killed_at": killed_at, "patience": patience},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


def test_early_stopping_goes_on_after_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calm = fit_noise(tmp_path, "calm")
    ended = calm.return_value
    assert 4 < ended["best"] == ended["rounds"] - 6 < 50
    # Once before the best round and once after it, which is then of before the resume.
    for killed_at in (ended["best"] - 3, ended["best"] + 3):
        hit = fit_noise(tmp_path, f"hit-{killed_at}", killed_at)
        assert hit.return_value["done"] == (killed_at + 1) // 2 * 2
        assert {**hit.return_value, "done": 0} == ended
        assert hit.metrics == calm.metrics
        assert RayTrainReportCallback.get_model(hit.checkpoint).current_iteration() == ended["rounds"]
    # What has ended stays as it is when somebody fits it again, unless it is given more patience.
    again = fit_noise(tmp_path, "calm")
    assert {**again.return_value, "done": 0} == ended
    assert again.metrics == calm.metrics
    assert fit_noise(tmp_path, "calm", patience=12).return_value["rounds"] > ended["rounds"]
    assert "begins anew" not in caplog.text


def test_early_stopping_that_cannot_go_on_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        import lightgbm
        import numpy as np

        rows = np.arange(80.0).reshape(40, 2)
        data = lightgbm.Dataset(rows, rows[:, 0] / 10, free_raw_data=False)
        valid = lightgbm.Dataset(rows, rows[:, 0] / 10, reference=data, free_raw_data=False)
        checkpoint = train.get_checkpoint()
        stopping = lightgbm.early_stopping(3, verbose=False) if checkpoint else None
        lightgbm.train(
            {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2},
            data,
            2,
            valid_sets=[valid],
            init_model=RayTrainReportCallback.get_model(checkpoint) if checkpoint else None,
            callbacks=[RayTrainReportCallback(early_stopping=stopping)],
        )

    def fit_here() -> None:
        config = RunConfig(name="here", storage_path=tmp_path, progress="quiet")
        train.DataParallelTrainer(work, scaling_config=ScalingConfig(num_workers=0), run_config=config).fit()

    fit_here()
    assert "begins anew" not in caplog.text
    fit_here()
    assert "Early stopping begins anew" in caplog.text
    caplog.clear()
    fit_here()
    assert "begins anew" not in caplog.text
    with pytest.raises(train.ConfigurationError, match=r"write lightgbm\.early_stopping\(\.\.\.\)"):
        RayTrainReportCallback(early_stopping=10)  # type: ignore[arg-type]
