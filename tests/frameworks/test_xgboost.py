"""XGBoost: workers train one model, and one that is lost changes no tree of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast as train
from holdfast import FailureConfig, RunConfig, ScalingConfig
from holdfast.xgboost import XGBoostConfig, XGBoostTrainer

pytest.importorskip("xgboost", reason="XGBoost is not installed: pip install holdfast[xgboost]")

ROUNDS = 9


def boost(config: dict[str, Any]) -> tuple[int, str]:
    """Trains to the end from where the run is; by how many rounds it was resumed, and the model."""
    import numpy as np
    import xgboost
    from xgboost import collective

    from holdfast.xgboost import RayTrainReportCallback

    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    assert (collective.get_rank(), collective.get_world_size()) == (rank, world_size)
    random = np.random.default_rng(0)
    rows = random.random((600, 6)).astype("float32")
    target = 3 * rows[:, 0] + rows[:, 1] ** 2 + 0.1 * random.random(600)
    data = xgboost.DMatrix(rows[rank::world_size], target[rank::world_size])

    checkpoint = train.get_checkpoint()
    model = RayTrainReportCallback.get_model(checkpoint) if checkpoint else None
    done = model.num_boosted_rounds() if model else 0

    class Kill(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            if config["killed"] and checkpoint is None and (rank, epoch) == (1, 4):
                os.kill(os.getpid(), signal.SIGKILL)
            return False

    booster = xgboost.train(
        {"max_depth": 3, "eta": 0.3},
        data,
        config["rounds"] - done,
        evals=[(data, "train")],
        xgb_model=model,
        callbacks=[RayTrainReportCallback(frequency=2), Kill()],
        verbose_eval=False,
    )
    return done, booster.save_raw("json").decode()


def fit(tmp_path: Path, name: str, killed: bool) -> train.Result:
    return XGBoostTrainer(
        boost,
        train_loop_config={"killed": killed, "rounds": ROUNDS},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


def test_a_worker_lost_between_checkpoints_changes_no_tree(tmp_path: Path) -> None:
    from holdfast.xgboost import RayTrainReportCallback

    _, calm = fit(tmp_path, "calm", killed=False).return_value
    hit = fit(tmp_path, "hit", killed=True)
    assert hit.return_value == (4, calm)
    errors = [metrics["train-rmse"] for _, metrics in hit.best_checkpoints]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 5  # after 2, 4, 6 and 8 rounds, and at the end
    assert {report["attempt"] for report in train.Run(hit.path).reports()} == {1, 2}
    assert RayTrainReportCallback.get_model(hit.checkpoint).num_boosted_rounds() == ROUNDS


def test_a_rank_that_returns_first_takes_nothing_from_the_others(tmp_path: Path) -> None:
    def work() -> float:
        import threading

        import numpy as np
        from xgboost import collective

        rank = train.get_context().get_world_rank()
        total = collective.allreduce(np.array([rank + 1.0]), collective.Op.SUM)
        if rank == 1:
            threading.Event().wait(1)  # rank 0, and its tracker, have most likely gone by then
        return float(total[0])

    result = XGBoostTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="uneven", storage_path=tmp_path, progress="quiet"),
    ).fit()
    assert result.return_value == 3


def noise(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on what cannot be learnt, so that early stopping ends it; what is left of the training."""
    import numpy as np
    import xgboost

    from holdfast.xgboost import EarlyStopping, RayTrainReportCallback

    checkpoint = train.get_checkpoint()
    model = RayTrainReportCallback.get_model(checkpoint) if checkpoint else None
    done = model.num_boosted_rounds() if model else 0

    class Fail(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            if checkpoint is None and epoch == config.get("fails_at"):
                raise OSError("as a worker that is lost")
            return False

    random = np.random.default_rng(3)
    rows, target = random.random((60, 3)).astype("float32"), random.normal(size=60)
    history: dict[str, Any] = {}
    stopping = xgboost.callback.EarlyStopping if config.get("own") else EarlyStopping
    booster = xgboost.train(
        {"eta": 0.3, "max_depth": 2, "nthread": 1},
        xgboost.DMatrix(rows[:40], target[:40]),
        50 - done,
        evals=[(xgboost.DMatrix(rows[40:], target[40:]), "valid")],
        xgb_model=model,
        callbacks=[stopping(rounds=5, save_best=config["save_best"]), RayTrainReportCallback(frequency=1), Fail()],
        evals_result=history,
        verbose_eval=False,
    )
    return {
        "done": done,
        "rounds": booster.num_boosted_rounds(),
        "best": booster.best_iteration,
        "trees": [booster[each].get_dump() for each in range(booster.num_boosted_rounds())],
        "errors": history.get("valid", {}).get("rmse", []),
    }


def fit_noise(tmp_path: Path, name: str, **config: Any) -> train.Result:
    return XGBoostTrainer(
        noise,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


@pytest.mark.parametrize("own", [True, False])
def test_the_model_that_early_stopping_leaves_is_stored_with_its_own_metrics(own: bool, tmp_path: Path) -> None:
    from holdfast.xgboost import RayTrainReportCallback

    result = fit_noise(tmp_path, "early", own=own, save_best=True)
    left = result.return_value
    assert 1 < left["rounds"] == left["best"] + 1 < len(left["errors"])
    assert RayTrainReportCallback.get_model(result.checkpoint).num_boosted_rounds() == left["rounds"]
    assert result.metrics == {"valid-rmse": min(left["errors"])}
    assert len(result.best_checkpoints) > left["rounds"]


def test_a_round_that_ends_the_training_is_reported_with_its_own_metrics(tmp_path: Path) -> None:
    result = fit_noise(tmp_path, "last", own=True, save_best=False)
    assert result.metrics == {"valid-rmse": result.return_value["errors"][-1]}
    assert len(train.Run(result.path).reports()) == result.return_value["rounds"]


@pytest.mark.parametrize("save_best", [True, False])
def test_early_stopping_goes_on_after_a_resume(
    save_best: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calm = fit_noise(tmp_path, "calm", save_best=save_best)
    best = calm.return_value["best"]
    # Once before the best round and once after it, which is then of before the resume.
    for fails_at in (best - 1, best + 3):
        hit = fit_noise(tmp_path, f"hit-{fails_at}", save_best=save_best, fails_at=fails_at)
        assert hit.return_value["done"] == fails_at + 1
        assert {**hit.return_value, "done": 0, "errors": []} == {**calm.return_value, "errors": []}
        assert hit.metrics == calm.metrics
    assert "stopped early already" not in caplog.text
    # What has ended stays as it is when somebody fits it again, and is not tried again.
    again = fit_noise(tmp_path, "calm", save_best=save_best)
    assert again.return_value["trees"] == calm.return_value["trees"]
    assert again.return_value["errors"] == []
    assert again.metrics == calm.metrics
    assert "stopped early already" in caplog.text


def test_early_stopping_that_would_judge_what_is_stored_already_is_refused(tmp_path: Path) -> None:
    def work() -> None:
        import numpy as np
        import xgboost

        from holdfast.xgboost import EarlyStopping, RayTrainReportCallback

        data = xgboost.DMatrix(np.arange(80.0).reshape(40, 2), np.arange(40.0))
        for order in (1, -1):
            callbacks = [EarlyStopping(rounds=5), RayTrainReportCallback(frequency=1)][::order]
            xgboost.train({"nthread": 1}, data, 2, evals=[(data, "train")], callbacks=callbacks, verbose_eval=False)

    with pytest.raises(train.WorkerGroupError, match="put EarlyStopping first"):
        XGBoostTrainer(
            work,
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RunConfig(name="behind", storage_path=tmp_path, progress="quiet"),
        ).fit()
    assert len(train.Run(tmp_path / "behind").reports()) == 2


def test_what_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(train.ConfigurationError, match="rabit"):
        XGBoostConfig(xgboost_communicator="federated")  # type: ignore[arg-type]


def test_xgboost_is_imported_when_it_is_needed() -> None:
    program = (
        "import sys, holdfast.xgboost; assert 'xgboost' not in sys.modules; holdfast.xgboost.RayTrainReportCallback"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
