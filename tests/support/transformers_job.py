"""A job of Transformers' `Trainer` that tests watch, kill and compare. What is here travels to workers by value."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle

import holdfast as train
from holdfast import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from holdfast.torch import TorchTrainer

cloudpickle.register_pickle_by_value(sys.modules[__name__])


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


def slow_look() -> None:
    """Between the names of a directory's files and what is known of each, another rank has long gone on."""
    from holdfast.huggingface.transformers import saved

    def named(*arguments: Any, **options: Any) -> Any:
        found = sorted(*arguments, **options)
        time.sleep(0.2)
        return found

    saved.sorted = named


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

    if rank == config.get("slow_rank"):
        slow_look()
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


def fit(tmp_path: Path, name: str, storage_path: str | None = None, **config: Any) -> train.Result:
    scores = CheckpointConfig(checkpoint_score_attribute="eval_loss", checkpoint_score_order="min")
    return TorchTrainer(
        loop,
        train_loop_config={"output_dir": str(tmp_path / f"out-{name}"), **config},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path or tmp_path / "runs",
            progress="quiet",
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=scores,
        ),
    ).fit()
