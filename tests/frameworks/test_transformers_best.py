"""`load_best_model_at_end` on a machine that has not saved the best model itself: it comes from the run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import holdfast as train
from holdfast import CheckpointConfig, RunConfig, ScalingConfig

pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
pytest.importorskip("transformers", reason="Transformers is not installed: pip install holdfast[transformers]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install holdfast[transformers]")

from holdfast.torch import TorchTrainer
from support.transformers_job import digits, small_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:mtime may not be reliable:UserWarning",  # of 4.57
)


def fit(tmp_path: Path, output_dir: str, *, fails_at: int = 0, ties: bool = False, **others: Any) -> train.Result:
    """Trains four steps, of which the first is the best, or all are alike, or fails on the way."""

    def work() -> dict[str, Any]:
        from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

        from holdfast.huggingface.transformers import ReportCallback

        class Fail(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == fails_at > 0:
                    raise OSError("as a machine that is lost")

        set_seed(1)
        each_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        arguments = TrainingArguments(
            output_dir=str(tmp_path / output_dir),
            max_steps=4,
            learning_rate=0.01,
            load_best_model_at_end=True,
            metric_for_best_model="left",
            greater_is_better=True,
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **each_step,
        )
        trainer = Trainer(
            small_model(),
            arguments,
            train_dataset=digits(0, 32),
            eval_dataset=digits(32, 40),
            compute_metrics=lambda _: {"left": 1 if ties else arguments.max_steps - trainer.state.global_step},
            callbacks=[Fail(), ReportCallback()],
        )
        if checkpoint := train.get_checkpoint():
            with checkpoint.as_directory() as directory:
                trainer.train(resume_from_checkpoint=f"{directory}/checkpoint")
        else:
            trainer.train()
        return {
            "best": trainer.state.best_model_checkpoint,
            "left": sorted(os.listdir(arguments.output_dir)),
            "weights": {name: weight.tolist() for name, weight in trainer.model.state_dict().items()},
        }

    return TorchTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="run", storage_path=tmp_path / "runs", progress="quiet", **others),
    ).fit()


def test_the_best_model_comes_from_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(train.WorkerGroupError):
        fit(tmp_path, "here", fails_at=3)
    shutil.rmtree(tmp_path / "here")
    left = fit(tmp_path, "there").return_value
    best = train.Run(tmp_path / "runs" / "run").best("eval_left", "max")
    assert best.metrics["step"] == 1
    assert left["best"] == str(tmp_path / "there" / "checkpoint-1")
    assert left["left"] == ["checkpoint-1"]
    from transformers import ViTForImageClassification

    with best.checkpoint.as_directory() as directory:
        model = ViTForImageClassification.from_pretrained(f"{directory}/checkpoint")
    assert left["weights"] == {name: weight.tolist() for name, weight in model.state_dict().items()}
    assert "of step 1, was not where Transformers had saved it" in caplog.text


@pytest.mark.slow
def test_a_best_model_that_nobody_has_kept_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = CheckpointConfig(num_to_keep=1)
    with pytest.raises(train.WorkerGroupError):
        fit(tmp_path, "here", fails_at=3, checkpoint_config=newest)
    shutil.rmtree(tmp_path / "here")
    left = fit(tmp_path, "there", checkpoint_config=newest).return_value
    assert left["best"] is None
    assert "best model so far, of step 1, is neither at" in caplog.text
    assert "checkpoint_score_attribute" in caplog.text


@pytest.mark.slow
def test_of_equals_that_which_the_run_has_kept_is_the_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="eval_left")
    with pytest.raises(train.WorkerGroupError):
        fit(tmp_path, "here", fails_at=3, ties=True, checkpoint_config=newest)
    shutil.rmtree(tmp_path / "here")
    left = fit(tmp_path, "there", ties=True, checkpoint_config=newest).return_value
    assert left["best"] == str(tmp_path / "there" / "checkpoint-3")
    assert "is neither at" not in caplog.text
