"""Transformers' `Trainer` on two workers: what it saves is reported whole, with its own metrics, and resumed exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import holdfast as train
from holdfast import CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from holdfast.errors import ConfigurationError

pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
pytest.importorskip("transformers", reason="Transformers is not installed: pip install holdfast[transformers]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install holdfast[transformers]")

from holdfast.torch import TorchTrainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# It loads the optimizer to `cpu:0`, which torch refuses.
NOT_BEFORE_5 = pytest.mark.skipif(
    int(version("transformers").split(".")[0]) < 5, reason="Transformers 4 cannot resume on CPUs in a group"
)

FILES = [
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state_0.pth",
    "rng_state_1.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
]


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Functions of this module travel by value, and workers are forked from a process that has Transformers."""
    import transformers.trainer  # noqa: F401 - whatever the driver has imported, the workers' parent has, too

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def digits(first: int, end: int) -> list[dict[str, Any]]:
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    return [
        {
            "pixel_values": torch.tensor(found.images[row] / 16, dtype=torch.float32)[None],
            "labels": int(found.target[row]),
        }
        for row in range(first, end)
    ]


def small_model() -> Any:
    """A vision transformer, whose weights have other names in its files than in memory."""
    from transformers import ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    image = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    return ViTForImageClassification(ViTConfig(**shape, **image, hidden_dropout_prob=0.1))


def whole(weight: Any) -> Any:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def shard(trainer: Any) -> None:
    """On CPUs Accelerate takes DDP instead of FSDP, without a word, though FSDP2 works there. What a GPU would have it say."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import PartialState

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
        auto_wrap_policy="NO_WRAP",
    )
    state = trainer.accelerator.state
    PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = plugin
    trainer.is_fsdp_enabled = True


def loop(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on 64 rows, 4 steps an epoch on two ranks; gives what is left of it, by rank."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    from holdfast.huggingface.transformers import RayTrainReportCallback, prepare_trainer

    rank, resumed = train.get_context().get_world_rank(), train.get_checkpoint()

    class Watch(TrainerCallback):
        """Looks at what Transformers has saved, and ends a rank."""

        inodes: dict[int, int] = {}  # noqa: RUF012 - one instance

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if (rank, state.global_step) == (1, config.get("killed_at")) and resumed is None:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", "scheduler.pt")
            if rank == 0:
                self.inodes[state.global_step] = file.stat().st_ino

    set_seed(1)
    arguments = TrainingArguments(
        output_dir=config["output_dir"],
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=0.01,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        **config["arguments"],
    )
    watch = Watch()
    trainer = Trainer(small_model(), arguments, train_dataset=digits(0, 64), eval_dataset=digits(64, 80))
    if "fsdp" in config["arguments"]:
        shard(trainer)
    trainer.add_callback(watch)
    trainer.add_callback(RayTrainReportCallback(**config.get("callback", {})))
    trainer = prepare_trainer(trainer)
    if resumed is not None:
        with resumed.as_directory() as directory:
            trainer.train(resume_from_checkpoint=os.path.join(directory, RayTrainReportCallback.CHECKPOINT_NAME))
    else:
        trainer.train()
    return {
        "history": [
            {name: entry[name] for name in ("step", "loss", "learning_rate", "grad_norm", "eval_loss") if name in entry}
            for entry in trainer.state.log_history
        ],
        "weights": {name: whole(weight).tolist() for name, weight in trainer.model.state_dict().items()},
        "inodes": watch.inodes,
        "left": sorted(os.listdir(config["output_dir"])),
        "best": trainer.state.best_model_checkpoint,
    }


def fit(tmp_path: Path, name: str, **config: Any) -> train.Result:
    scores = CheckpointConfig(checkpoint_score_attribute="eval_loss", checkpoint_score_order="min")
    return TorchTrainer(
        loop,
        train_loop_config={"output_dir": str(tmp_path / f"out-{name}"), **config},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name,
            storage_path=tmp_path / "runs",
            progress="quiet",
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=scores,
        ),
    ).fit()


def assert_whole(result: train.Result) -> None:
    for each in train.Run(result.path).checkpoints:
        assert [file.path for file in each.checkpoint.files()] == [f"checkpoint/{name}" for name in FILES]
        assert each.checkpoint.verify() == []
        with each.checkpoint.as_directory() as directory:
            state = json.loads(Path(directory, "checkpoint", "trainer_state.json").read_text())
        assert state["global_step"] == each.metrics["step"]


def test_metrics_are_those_of_the_saved_step(tmp_path: Path) -> None:
    # An attempt of more ranks, which died in the middle of its save, has left a part of what will be saved again.
    left = tmp_path / "out-strides" / "checkpoint-6"
    left.mkdir(parents=True)
    for name in ("rng_state_3.pth", "optimizer.pt"):
        (left / name).write_bytes(b"of a dead attempt")
    (tmp_path / "out-strides" / "_holdfast-dead").mkdir()
    arguments = {"max_steps": 9, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    arguments |= {"save_strategy": "steps", "save_total_limit": 2}
    result = fit(tmp_path, "strides", arguments=arguments)
    history = {}
    for entry in result.return_value["history"]:
        history.setdefault(entry["step"], {}).update(entry)
    reported = [each.metrics for each in train.Run(result.path).checkpoints]
    assert [metrics["step"] for metrics in reported] == [3, 6, 9]
    for metrics in reported:
        # At steps 3 and 9 nothing was logged but the evaluation, and what was one before is of other weights.
        assert ("loss" in metrics) == (metrics["step"] == 6)
        assert metrics["eval_step"] == metrics["step"]
        assert {name: metrics[name] for name in history[metrics["step"]]} == history[metrics["step"]]
    assert_whole(result)
    # Its own directory stays Transformers' own, which keeps the newest two.
    assert result.return_value["left"] == ["checkpoint-6", "checkpoint-9"]
    assert (left / "rng_state_3.pth").exists()


def test_an_older_evaluation_says_of_which_step_it_is(tmp_path: Path) -> None:
    arguments = {
        "max_steps": 4,
        "logging_steps": 4,
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    arguments |= {"eval_on_start": True}
    callback = {"delete_local_checkpoint_after_upload": True}
    result = fit(tmp_path, "older", arguments=arguments, callback=callback)
    reported = [each.metrics for each in train.Run(result.path).checkpoints]
    # At the end of an epoch Transformers saves first, by the step, and evaluates after that, by the epoch.
    assert [(metrics["step"], metrics["eval_step"]) for metrics in reported] == [(3, 0), (4, 0)]
    assert_whole(result)
    # Given away: nothing is left, and on one file system nothing was copied.
    assert result.return_value["left"] == []
    stored = train.Run(result.path).checkpoints
    for each in stored:
        inode = Path(each.checkpoint.path, "checkpoint", "scheduler.pt").stat().st_ino
        assert inode == result.return_value["inodes"][each.metrics["step"]]
    logs = "".join(path.read_text() for path in Path(result.path).glob(".holdfast/logs/*/*"))
    assert logs.count("is ranked by eval_loss of step 0") == 1


def test_the_best_model_is_loaded_and_the_rest_is_rotated_while_reports_are_stored(tmp_path: Path) -> None:
    arguments = {"num_train_epochs": 3, "logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"}
    # The greatest loss is the first, so that the best model is not the last.
    arguments |= {"save_total_limit": 1, "load_best_model_at_end": True, "greater_is_better": True}
    callback = {"checkpoint_upload_mode": CheckpointUploadMode.ASYNC}
    result = fit(tmp_path, "best", arguments=arguments, callback=callback)
    assert_whole(result)
    reported = [each.metrics for each in train.Run(result.path).checkpoints]
    assert [(metrics["step"], metrics["epoch"]) for metrics in reported] == [(4, 1), (8, 2), (12, 3)]
    best = train.Run(result.path).best("eval_loss", "max")
    assert result.return_value["best"].endswith(f"checkpoint-{best.metrics['step']}")
    assert result.return_value["left"] == [f"checkpoint-{best.metrics['step']}"]
    from transformers import ViTForImageClassification

    with best.checkpoint.as_directory() as directory:
        model = ViTForImageClassification.from_pretrained(f"{directory}/checkpoint")
    assert {name: weight.tolist() for name, weight in model.state_dict().items()} == result.return_value["weights"]


STEPS = {
    "max_steps": 8,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> train.Result:
    return fit(tmp_path_factory.mktemp("calm"), "calm", arguments=STEPS)


@NOT_BEFORE_5
@pytest.mark.parametrize("mode", ["SYNC", pytest.param("ASYNC", marks=pytest.mark.slow)])
def test_a_rank_killed_in_mid_epoch_changes_nothing(mode: str, calm: train.Result, tmp_path: Path) -> None:
    callback = {"checkpoint_upload_mode": CheckpointUploadMode[mode]}
    hit = fit(tmp_path, "hit", arguments=STEPS, callback=callback, killed_at=5)
    reports = train.Run(hit.path).reports()
    assert [(report["attempt"], report["metrics"]["step"]) for report in reports] == [(1, 3), (2, 6), (2, 8)]
    # Model, optimizer, schedule, random states and the order of the data: every number of every step is the same.
    assert hit.return_value["history"] == calm.return_value["history"]
    assert hit.return_value["weights"] == calm.return_value["weights"]
    assert_whole(hit)


@NOT_BEFORE_5
def test_ranks_report_their_shards(tmp_path: Path) -> None:
    arguments = {**STEPS, "eval_strategy": "no", "fsdp": True}
    arguments["fsdp_config"] = {
        "version": 2,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    }
    calm = fit(tmp_path, "calm", arguments=arguments)
    hit = fit(tmp_path, "hit", arguments=arguments, killed_at=5)
    assert hit.return_value["history"] == calm.return_value["history"]
    assert hit.return_value["weights"] == calm.return_value["weights"]
    for each in train.Run(hit.path).checkpoints:
        assert each.checkpoint.verify() == []
        ranks = {file.path.removeprefix("checkpoint/"): file.rank for file in each.checkpoint.files()}
        assert ranks == {
            **{
                f"{part}/__{rank}_0.distcp": rank for part in ("optimizer_0", "pytorch_model_fsdp_0") for rank in (0, 1)
            },
            **{f"{part}/.metadata": 0 for part in ("optimizer_0", "pytorch_model_fsdp_0")},
            **{f"rng_state_{rank}.pth": rank for rank in (0, 1)},
            "scheduler.pt": 0,
            "trainer_state.json": 0,
        }


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
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
