"""PyTorch Lightning on two workers: what is reported, what a resumed run does, whichever of its two packages is used."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import holdfast as train
from holdfast import CheckpointUploadMode
from support.lightning_jobs import BATCHES, DDP, EPOCHS, KILL, digits, fit

pytest.importorskip("lightning", reason="Lightning is not installed: pip install holdfast[lightning]")
if importlib.util.find_spec("pytorch_lightning") is None:
    pytest.skip("pytorch_lightning is not installed: pip install pytorch-lightning", allow_module_level=True)

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


@pytest.fixture(autouse=True)
def _functions_travel_by_value() -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def same(calm: train.Result, hit: train.Result) -> None:
    for key in ("weights", "rate", "moment", "step"):
        assert hit.return_value[key] == calm.return_value[key]


def metrics_of(result: train.Result) -> list[dict[str, Any]]:
    return [report["metrics"] for report in train.Run(result.path).reports()]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_worker_lost_in_mid_epoch_changes_nothing(package: str, tmp_path: Path) -> None:
    # With a process that reads ahead, too, which knows of an epoch only what it was told at its start.
    config = {"package": package, "readers": PACKAGES.index(package)}
    calm = fit(tmp_path, "calm", config)
    hit = fit(tmp_path, "hit", {**config, "strategy": DDP, "at": (2 * BATCHES + 3, 1), "signal": KILL})
    same(calm, hit)
    assert (calm.return_value["strategy"], hit.return_value["strategy"]) == ("DDPStrategy", "RayDDPStrategy")
    assert hit.return_value["seen"] == calm.return_value["seen"][2 * BATCHES :]
    reports = train.Run(hit.path).reports()
    assert [report["metrics"]["epoch"] for report in reports] == list(range(EPOCHS))
    assert [report["metrics"]["step"] for report in reports] == [BATCHES * (1 + epoch) for epoch in range(EPOCHS)]
    assert set(reports[0]["metrics"]) == {"loss", "val/accuracy", "epoch", "step"}
    assert [file.path for file in hit.checkpoint.files()] == ["checkpoint.ckpt"]


def test_checkpoints_in_mid_epoch_lose_and_repeat_no_batch(tmp_path: Path) -> None:
    # The fourth step, and its multiples: 12 and 24 are the last of their epochs, 8 is the second of its.
    callback = {"every_n_train_steps": 4, "checkpoint_upload_mode": CheckpointUploadMode.ASYNC}
    # The fourth batch of each epoch, which is the fourth step, the tenth, and so on, is followed by a validation.
    config = {"callback": callback, "trainer": {"val_check_interval": 4}}
    calm = fit(tmp_path, "calm", config)
    hit = fit(tmp_path, "hit", {**config, "at": (10, 1), "signal": KILL})
    assert hit.return_value["seen"] == calm.return_value["seen"][8:]
    same(calm, hit)
    # The validation of the tenth is made again by the second attempt.
    expected = [(4, 0), (6, 0), (8, 1), (10, 1), (10, 1), (12, 1), (16, 2), (18, 2), (20, 3), (22, 3), (24, 3)]
    assert [(metrics["step"], metrics["epoch"]) for metrics in metrics_of(hit)] == expected
    assert [metrics["step"] for metrics in metrics_of(hit) if "val/accuracy" in metrics] == [4, 10, 10, 16, 22]
    assert [metrics["step"] for _, metrics in hit.best_checkpoints] == [4, 8, 12, 16, 20, 24]


@pytest.mark.slow
def test_fewer_workers_go_on_behind_the_same_items(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits
    from torch.utils.data import DistributedSampler

    config = {"items": 240, "epochs": 1, "callback": {"every_n_train_steps": 2}}
    with pytest.raises(train.TrainingFailedError):
        fit(tmp_path, "fewer", {**config, "at": (5, 1), "signal": KILL}, workers=3, max_failures=0)
    seen = fit(tmp_path, "fewer", config).return_value["seen"]
    # Of what is dealt out to two, behind the 96 items that three have had in four batches of eight.
    mine = [*DistributedSampler(range(240), num_replicas=2, rank=0)][48:]
    images = load_digits(return_X_y=True)[0] / 16
    assert seen == pytest.approx([images[mine[at : at + 8]].sum() for at in range(0, len(mine), 8)], abs=0.01)


SHARDED = {
    "fsdp": (
        "RayFSDPStrategy",
        {"state_dict_type": "sharded"},
        {".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"},
    ),
    "fsdp2": (
        "ModelParallelStrategy",
        {"data_parallel_size": 2, "tensor_parallel_size": 1},
        {".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"},
    ),
    "zero-2": (
        "RayDeepSpeedStrategy",
        {"stage": 2},
        {"mp_rank_00_model_states.pt", *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1))},
    ),
    "zero-3": (
        "RayDeepSpeedStrategy",
        {"stage": 3},
        {f"zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt" for rank in (0, 1) for part in ("model", "optim")},
    ),
}


@pytest.mark.parametrize(
    "kind", ["fsdp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fsdp2", "zero-2", "zero-3"))]
)
def test_each_rank_saves_its_shards_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, arguments, expected = SHARDED[kind]
    if "DeepSpeed" in name:
        if importlib.util.find_spec("deepspeed") is None:
            pytest.skip("DeepSpeed is not installed: pip install deepspeed")
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = {
        "strategy": (name, arguments),
        "sharded": True,
        "fully_shard": kind == "fsdp2",
        "trainer": {"enable_checkpointing": False},
    }
    calm = fit(tmp_path, "calm", config)
    hit = fit(tmp_path, "hit", {**config, "at": (2 * BATCHES + 3, 1), "signal": KILL})
    assert hit.return_value["seen"] == calm.return_value["seen"][2 * BATCHES :]
    assert metrics_of(hit) == metrics_of(calm)
    files = [Path(file.path) for file in hit.checkpoint.files()]
    assert {file.parts[0] for file in files} == {"checkpoint.ckpt"}
    assert {file.name for file in files} >= expected
    assert len(files) == len({file.name for file in files})


@pytest.mark.slow
def test_shards_in_a_bucket(tmp_path: Path, url: str) -> None:
    callback = {"every_n_train_steps": 4, "checkpoint_upload_mode": CheckpointUploadMode.ASYNC}
    config = {"strategy": SHARDED["fsdp"][:2], "sharded": True, "callback": callback}
    calm = fit(tmp_path, "calm", config)
    hit = fit(tmp_path, "hit", {**config, "at": (10, 0), "signal": KILL}, storage_path=url)
    assert hit.return_value["seen"] == calm.return_value["seen"][8:]
    assert hit.metrics == calm.metrics
    assert hit.checkpoint.verify() == []


def test_a_stop_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(train.TrainingInterrupted) as stopped:
        fit(tmp_path, "stopped", {"at": (2 * BATCHES + 3, 0), "signal": (os.getpid(), signal.SIGINT)})
    assert stopped.value.result.metrics["step"] >= 2 * BATCHES
    result = fit(tmp_path, "stopped", {"callback": {"checkpoint_upload_mode": CheckpointUploadMode.ASYNC}})
    assert result.return_value["step"] == EPOCHS * BATCHES
    assert [metrics["epoch"] for metrics in metrics_of(result)] == list(range(EPOCHS))


def test_a_trainer_that_would_train_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(train.TrainingFailedError) as failed:
        fit(tmp_path, "alone", {"trainer": {"devices": 1}}, max_failures=0)
    rank, error = next(iter(failed.value.worker_failures.items()))  # the other one may be stopped before it gets there
    assert isinstance(error, train.ConfigurationError)
    assert f"worker {rank} of 2 takes itself for rank 0 of 1" in str(error)
    assert "RayDDPStrategy()" in str(error)


def one_after_another(config: dict[str, Any]) -> list[str]:
    """Several small trainings in one worker, with all that users put beside the callback."""
    import lightning.pytorch as pl
    import pytorch_lightning
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
    from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

    from holdfast.lightning import (
        RayDDPStrategy,
        RayFSDPStrategy,
        RayLightningEnvironment,
        RayTrainReportCallback,
        ReportCallback,
    )

    def run(package: Any, callbacks: Any, epochs: int = 4, **options: Any) -> Any:
        model, loader, validation = digits({**config, "package": package.__name__, "resumed": True, "batches": 2})
        options = {"enable_checkpointing": False, **options}
        trainer = package.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=config["root"],
            **options,
        )
        trainer.fit(model, loader, validation)
        return trainer

    class Mine(RayTrainReportCallback):  # type: ignore[valid-type, misc]
        CHECKPOINT_NAME = "mine.ckpt"

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            assert trainer.checkpoint_callback.best_model_path == ""
            train.report({"mine": trainer.current_epoch})

    class Stops(Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    written = []

    class Recorder(TorchCheckpointIO):  # type: ignore[misc]
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            super().save_checkpoint(checkpoint, path, storage_options)
            written.append(os.path.basename(path))

    # Both packages are imported: either's trainer takes the callback and the environment, also by themselves.
    assert RayTrainReportCallback is ReportCallback
    callback = RayTrainReportCallback(every_n_epochs=3)
    assert isinstance(callback, RayTrainReportCallback)
    assert isinstance(callback, Callback)
    assert isinstance(callback, RayTrainReportCallback | None)
    assert isinstance(None, None | RayTrainReportCallback)
    assert issubclass(Mine, RayTrainReportCallback)
    run(pytorch_lightning, callback)
    # Strategies belong to one of them, here told by the model that was made, or to be said.
    strategy = RayDDPStrategy.of(pl)(find_unused_parameters=False)
    trainer = run(pl, [Mine()], 1, strategy=strategy, plugins=RayLightningEnvironment())
    assert isinstance(trainer.strategy, RayDDPStrategy)
    assert trainer.checkpoint_callbacks == []  # that is what it was among while it trained
    run(pl, [RayTrainReportCallback(every_n_train_steps=3), Stops()])
    with pytest.raises(train.ConfigurationError, match="state_dict_type='sharded'"):
        run(pl, [RayTrainReportCallback()], strategy=RayFSDPStrategy.of(pl)(), plugins=[RayLightningEnvironment()])
    # A save that returns before there is a file; what else writes checkpoints keeps doing so.
    keeps = ModelCheckpoint(dirpath=config["root"], filename="own", monitor="val/accuracy", mode="max")
    stops = EarlyStopping(monitor="val/accuracy", mode="max", patience=0, min_delta=2.0)
    plugins = [AsyncCheckpointIO(Recorder())]
    run(pl, [RayTrainReportCallback(), keeps, stops], enable_checkpointing=True, plugins=plugins)
    return written


def test_what_users_put_beside_it(tmp_path: Path) -> None:
    result = fit(tmp_path, "beside", {}, workers=1, function=one_after_another)
    reports = [
        (metrics.get("step"), metrics.get("mine"), report["checkpoint"] is not None)
        for report in train.Run(result.path).reports()
        for metrics in [report["metrics"]]
    ]
    every_third = [(2, None, False), (4, None, False), (6, None, True), (8, None, True)]
    mine = [(2, None, True), (None, 0, False)]
    stopped = [(2, None, False), (3, None, True), (3, None, False)]
    early = [(2, None, True), (4, None, True)]
    assert reports == [*every_third, *mine, *stopped, *early]
    names = [next(iter(entry.checkpoint.files())).path for entry in train.Run(result.path).checkpoints]
    assert names == ["checkpoint.ckpt", "checkpoint.ckpt", "mine.ckpt", *["checkpoint.ckpt"] * 3]
    assert {"checkpoint.ckpt", "own.ckpt"} == set(result.return_value)


def test_without_workers_also_in_a_notebook(tmp_path: Path) -> None:
    script = f"""
import sys

sys.ps1 = ">>> "  # what a notebook has, by which Lightning knows it
import lightning.pytorch as pl
import torch

import holdfast as train
from holdfast.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback
from holdfast.torch import TorchTrainer


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def work():
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[RayTrainReportCallback()],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(4, 1)))


config = train.RunConfig(name="notebook", storage_path={str(tmp_path)!r})
scaling = train.ScalingConfig(num_workers=0)
result = TorchTrainer(work, scaling_config=scaling, run_config=config).fit()
print(result.metrics, [file.path for file in result.checkpoint.files()])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "{'epoch': 1, 'step': 8} ['checkpoint.ckpt']" in done.stdout


def test_arguments_are_checked_where_they_are_written() -> None:
    from holdfast.lightning import RayTrainReportCallback

    for wrong in ({"every_n_epochs": 0}, {"every_n_train_steps": 1.5}, {"checkpoint_upload_mode": "ASYNC"}):
        with pytest.raises(train.ConfigurationError, match=next(iter(wrong))):
            RayTrainReportCallback(**wrong)


def test_names_are_those_of_the_guide() -> None:
    import holdfast.lightning

    assert holdfast.lightning.RayTrainReportCallback.CHECKPOINT_NAME == "checkpoint.ckpt"
    for name in holdfast.lightning.__all__:
        assert getattr(holdfast.lightning, name).__doc__
    travelled = cloudpickle.loads(cloudpickle.dumps(holdfast.lightning.RayDDPStrategy))
    assert travelled is holdfast.lightning.RayDDPStrategy
    with pytest.raises(train.ConfigurationError, match=r"a Trainer of lightning or pytorch_lightning"):
        holdfast.lightning.prepare_trainer(object())
