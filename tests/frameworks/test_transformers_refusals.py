"""What cannot work with Transformers' `Trainer` is refused or told before it costs a training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import holdfast as train
from holdfast import CheckpointUploadMode, RunConfig, ScalingConfig
from holdfast.errors import ConfigurationError

pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
pytest.importorskip("transformers", reason="Transformers is not installed: pip install holdfast[transformers]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install holdfast[transformers]")

import transformers.trainer  # noqa: F401 - workers are forked from a process that has what the driver has imported

from holdfast.torch import TorchTrainer
from support.transformers_job import digits, small_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def in_this_process(tmp_path: Path, function: Any) -> None:
    run_config = RunConfig(name="here", storage_path=tmp_path / "runs", progress="quiet")
    TorchTrainer(function, scaling_config=ScalingConfig(num_workers=0), run_config=run_config).fit()


def arguments_in(tmp_path: Path, **others: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **others,
    )


def test_what_trains_beside_the_group_is_refused(tmp_path: Path) -> None:
    def alone() -> None:
        from transformers import Trainer

        from holdfast.huggingface.transformers import RayTrainReportCallback, prepare_trainer

        # So it is with a trainer that makes no process group.
        os.environ["ACCELERATE_USE_CPU"] = "false"
        trainer = Trainer(small_model(), arguments_in(tmp_path), train_dataset=digits(0, 8))
        trainer.add_callback(RayTrainReportCallback())
        with pytest.raises(ConfigurationError, match="use_cpu=True"):
            prepare_trainer(trainer)
        trainer.train()

    trainer = TorchTrainer(
        alone,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="alone", storage_path=tmp_path / "runs", progress="quiet"),
    )
    with pytest.raises(train.TrainingFailedError) as failed:
        trainer.fit()
    # The other rank may have been ended before it came as far.
    assert ConfigurationError in {type(error) for error in failed.value.worker_failures.values()}


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    from holdfast.huggingface.transformers import ReportCallback, prepare_trainer

    with pytest.raises(ConfigurationError, match="pass SYNC or ASYNC"):
        ReportCallback(checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
    with pytest.raises(ConfigurationError, match="must be CheckpointUploadMode"):
        ReportCallback(checkpoint_upload_mode="SYNC")

    def no_trainer() -> None:
        with pytest.raises(ConfigurationError, match=r"takes a transformers\.Trainer"):
            prepare_trainer(small_model())

    def reads_what_is_gone() -> None:
        from transformers import Trainer

        both = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
        callback = ReportCallback(delete_local_checkpoint_after_upload=True)
        data = digits(0, 8)
        trainer = Trainer(
            small_model(), arguments_in(tmp_path, **both), train_dataset=data, eval_dataset=data, callbacks=[callback]
        )
        with pytest.raises(ConfigurationError, match="load_best_model_at_end"):
            trainer.train()

    in_this_process(tmp_path, no_trainer)
    in_this_process(tmp_path, reads_what_is_gone)


def test_a_training_that_does_not_resume_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def forgets() -> None:
        from transformers import Trainer

        from holdfast.huggingface.transformers import ReportCallback

        arguments = arguments_in(tmp_path, save_strategy="steps", save_steps=1)
        Trainer(small_model(), arguments, train_dataset=digits(0, 8), callbacks=[ReportCallback()]).train()

    in_this_process(tmp_path, forgets)
    assert "resume_from_checkpoint" not in caplog.text
    in_this_process(tmp_path, forgets)
    assert "resume_from_checkpoint" in caplog.text


def test_importing_it_imports_no_framework() -> None:
    program = (
        "import sys, holdfast.huggingface.transformers as module; "
        "assert not {'torch', 'transformers'} & set(sys.modules); "
        "assert module.RayTrainReportCallback is module.ReportCallback; "
        "assert module.ReportCallback.CHECKPOINT_NAME == 'checkpoint'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=280)
