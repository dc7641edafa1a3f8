"""PyTorch Lightning on two workers: what is reported, what a resumed run does, whichever of its two packages is used."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import holdfast as train
from holdfast import CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from holdfast.torch import TorchTrainer

pytest.importorskip("lightning", reason="Lightning is not installed: pip install holdfast[lightning]")

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
EPOCHS, BATCHES = 4, 6


@pytest.fixture(autouse=True)
def _functions_travel_by_value() -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def digits(config: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A Lightning module, and loaders of images of digits: a small model that has all that a resumed run must get back."""
    import torch
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    pl = importlib.import_module(config.get("package", "lightning.pytorch"))
    torch.manual_seed(7)
    images, labels = load_digits(return_X_y=True)
    size = config.get("batches", BATCHES) * 8 * train.get_context().get_world_size()
    data = TensorDataset(torch.tensor(images[:size], dtype=torch.float32) / 16, torch.tensor(labels[:size]))

    class Digits(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
            self.seen: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if config.get("kill") == (self.trainer.global_step, self.trainer.global_rank) and not train.get_checkpoint():
                raise AssertionError("killed before a checkpoint")
            if config.get("kill") == (self.trainer.global_step, self.trainer.global_rank) and not config["resumed"]:
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen.append(round(batch[0].sum().item(), 3))
            loss = torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
            self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            right = (self.layers(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("val/accuracy", right, sync_dist=True)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]

    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=0)
    return Digits(), loader, DataLoader(data, batch_size=32)


def fit_digits(config: dict[str, Any]) -> dict[str, Any]:
    """The guide's function."""
    from holdfast.lightning import (
        RayDDPStrategy,
        RayLightningEnvironment,
        RayTrainReportCallback,
        prepare_trainer,
    )

    checkpoint = train.get_checkpoint()
    config["resumed"] = checkpoint is not None
    model, loader, validation = digits(config)
    pl = importlib.import_module(config.get("package", "lightning.pytorch"))
    options: dict[str, Any] = {"devices": "auto"}
    if config.get("strategy") == "guide":
        options |= {"strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()]}
    elif config.get("strategy"):
        options |= {"strategy": config["strategy"], "devices": 2}
    trainer = pl.Trainer(
        max_epochs=config.get("epochs", EPOCHS),
        accelerator="cpu",
        callbacks=[RayTrainReportCallback(**config.get("callback", {}))],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=config["root"],
        **(options | config.get("trainer", {})),
    )
    trainer = prepare_trainer(trainer)
    if checkpoint:
        with checkpoint.as_directory() as directory:
            path = os.path.join(directory, RayTrainReportCallback.CHECKPOINT_NAME)
            trainer.fit(model, loader, validation, ckpt_path=path)
    else:
        trainer.fit(model, loader, validation)
    return {
        "weights": [parameter.detach().flatten()[:5].tolist() for parameter in model.parameters()],
        "lr": trainer.optimizers[0].param_groups[0]["lr"],
        "moment": trainer.optimizers[0].state_dict()["state"][0]["exp_avg"].flatten()[:5].tolist(),
        "step": trainer.global_step,
        "seen": model.seen,
        "strategy": type(trainer.strategy).__name__,
    }


def fit(tmp_path: Path, name: str, config: dict[str, Any], workers: int = 2, **options: Any) -> train.Result:
    return TorchTrainer(
        options.pop("function", fit_digits),
        train_loop_config={"root": str(tmp_path), **config},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name=name,
            storage_path=tmp_path / "runs",
            progress="plain",
            failure_config=FailureConfig(max_failures=1),
            **options,
        ),
    ).fit()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_worker_lost_in_mid_epoch_changes_nothing(package: str, tmp_path: Path) -> None:
    calm = fit(tmp_path, "calm", {"package": package})
    hit = fit(tmp_path, "hit", {"package": package, "strategy": "guide", "kill": (2 * BATCHES + 3, 1)})
    for key in ("weights", "lr", "moment", "step"):
        assert hit.return_value[key] == calm.return_value[key]
    assert (calm.return_value["strategy"], hit.return_value["strategy"]) == ("DDPStrategy", "RayDDPStrategy")
    assert hit.return_value["seen"] == calm.return_value["seen"][2 * BATCHES :]
    reports = train.Run(hit.path).reports()
    assert [report["metrics"]["epoch"] for report in reports] == list(range(EPOCHS))
    assert [report["metrics"]["step"] for report in reports] == [BATCHES * (1 + epoch) for epoch in range(EPOCHS)]
    assert set(reports[0]["metrics"]) == {"loss", "val/accuracy", "epoch", "step"}
    assert [file.path for file in hit.checkpoint.files()] == ["checkpoint.ckpt"]
