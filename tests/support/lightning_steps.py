"""A training with PyTorch Lightning in the test's own process, whose metrics say of which step they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import holdfast as train
from holdfast import CheckpointConfig, RunConfig, ScalingConfig
from holdfast.torch import TorchTrainer

BATCHES = 6


class LostError(Exception):
    """What ends an attempt here."""


class Setting:
    """A value of a class of the user's own."""


def steps(config: dict[str, Any]) -> list[int]:
    """Trains in batches of one, and gives the step of each validation.

    `validated` is the step that the latest validation is of, `mean` is a mean over an epoch.
    """
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader

    from holdfast.lightning import RayTrainReportCallback

    class Steps(pl.LightningModule):  # type: ignore[misc]
        def __init__(self, setting: Any = None) -> None:
            super().__init__()
            if config.get("save_hyperparameters"):
                self.save_hyperparameters()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[float] = []
            self.validated: list[int] = []
            self.automatic_optimization = "manual" not in config

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.fit_loop.total_batch_idx == config.get("lost_at"):
                raise LostError
            self.seen += batch[:, 0].tolist()
            loss = self.layer(batch).square().mean()
            self.log("mean", loss, on_epoch=True, on_step=False)
            self.log("always", 1.0)
            if batch_idx == 0:
                self.log("first", 1.0)
            for _ in range(config.get("manual", 0)):
                self.optimizers().step()
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.log("after", float(self.trainer.global_step))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if not self.trainer.sanity_checking:
                self.validated.append(self.trainer.global_step)
            # The highest in the middle of training.
            self.log("validated", float(self.trainer.global_step))
            self.log("score", -abs(float(self.trainer.global_step - 6)))

        def on_train_epoch_end(self) -> None:
            self.log("ended", float(self.trainer.global_step))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    batches, size = config.get("batches", BATCHES), config.get("size", 1)
    data = torch.arange(float(batches)).unsqueeze(1)
    sampler = config["sampler"](data) if "sampler" in config else None
    trainer = pl.Trainer(
        **{"max_epochs": 2, **config.get("trainer", {})},
        accelerator="cpu",
        devices=1,
        callbacks=[RayTrainReportCallback(**config.get("callback", {})), *config.get("callbacks", [])],
        enable_checkpointing=any(isinstance(each, pl.callbacks.Checkpoint) for each in config.get("callbacks", [])),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        logger=False,
        use_distributed_sampler=False,
        default_root_dir=config["root"],
    )
    model = Steps(Setting())
    validation = None if config.get("validates") is False else DataLoader(data[:1])
    options: dict[str, Any] = config.get("fit", {})
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            path = os.path.join(directory, "checkpoint.ckpt")
            trainer.fit(model, DataLoader(data, size, sampler=sampler), validation, ckpt_path=path, **options)
    else:
        trainer.fit(model, DataLoader(data, size, sampler=sampler), validation, **options)
    return model.seen if config.get("returns") == "seen" else model.validated


def fit_steps(tmp_path: Path, name: str, kept: CheckpointConfig | None = None, **config: Any) -> train.Result:
    return TorchTrainer(
        steps,
        train_loop_config={"root": str(tmp_path), **config},
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(
            name=name, storage_path=tmp_path / "runs", progress="plain", checkpoint_config=kept or CheckpointConfig()
        ),
    ).fit()
