"""A training with PyTorch Lightning that has all that a resumed run must get back, on workers."""

from __future__ import annotations

import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import holdfast as train
from holdfast import FailureConfig, RunConfig, ScalingConfig
from holdfast.torch import TorchTrainer

EPOCHS, BATCHES = 4, 6
DDP: tuple[str, dict[str, Any]] = ("RayDDPStrategy", {})
KILL = (0, signal.SIGKILL)


def digits(config: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A Lightning module, and loaders of images of digits: a small model that has all that a resumed run must get back."""
    import torch
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    pl = importlib.import_module(config.get("package", "lightning.pytorch"))
    torch.manual_seed(7)
    images, labels = load_digits(return_X_y=True)
    size = config.get("items") or config.get("batches", BATCHES) * 8 * train.get_context().get_world_size()
    data = TensorDataset(torch.tensor(images[:size], dtype=torch.float32) / 16, torch.tensor(labels[:size]))

    class Digits(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
            self.seen: list[float] = []

        def configure_model(self) -> None:
            if config.get("fully_shard"):
                from torch.distributed.fsdp import fully_shard

                fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if (self.trainer.global_step, self.trainer.global_rank) == config.get("at") and not config["resumed"]:
                pid, signum = config["signal"]
                os.kill(pid or os.getpid(), signum)
                time.sleep(60)  # until the driver has it stopped
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

    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=config.get("readers", 0))
    return Digits(), loader, DataLoader(data, batch_size=32)


def fit_digits(config: dict[str, Any]) -> dict[str, Any]:
    """The guide's function."""
    from holdfast import lightning

    checkpoint = train.get_checkpoint()
    config["resumed"] = checkpoint is not None
    model, loader, validation = digits(config)
    pl = importlib.import_module(config.get("package", "lightning.pytorch"))
    options: dict[str, Any] = {"devices": "auto", **config.get("trainer", {})}
    if "strategy" in config:
        name, arguments = config["strategy"]
        strategy = getattr(lightning, name, None) or getattr(pl.strategies, name)
        options |= {"strategy": strategy(**arguments), "plugins": [lightning.RayLightningEnvironment()]}
    trainer = pl.Trainer(
        max_epochs=config.get("epochs", EPOCHS),
        accelerator="cpu",
        callbacks=[lightning.RayTrainReportCallback(**config.get("callback", {}))],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=config["root"],
        **options,
    )
    trainer = lightning.prepare_trainer(trainer)
    if checkpoint:
        with checkpoint.as_directory() as directory:
            path = os.path.join(directory, lightning.RayTrainReportCallback.CHECKPOINT_NAME)
            trainer.fit(model, loader, validation, ckpt_path=path)
    else:
        trainer.fit(model, loader, validation)
    state = {"step": trainer.global_step, "seen": model.seen, "strategy": type(trainer.strategy).__name__}
    if type(model.layers[0].weight).__name__ != "Parameter" or config.get("sharded"):
        return state
    optimizer = trainer.optimizers[0]
    return {
        **state,
        "weights": [parameter.detach().flatten()[:5].tolist() for parameter in model.parameters()],
        "rate": optimizer.param_groups[0]["lr"],
        "moment": optimizer.state_dict()["state"][0]["exp_avg"].flatten()[:5].tolist(),
    }


def fit(tmp_path: Path, name: str, config: dict[str, Any], workers: int = 2, **options: Any) -> train.Result:
    function = options.pop("function", fit_digits)
    failures = FailureConfig(max_failures=options.pop("max_failures", 1))
    return TorchTrainer(
        function,
        train_loop_config={"root": str(tmp_path), **config},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name=name,
            storage_path=options.pop("storage_path", tmp_path / "runs"),
            progress="plain",
            failure_config=failures,
            **options,
        ),
    ).fit()
