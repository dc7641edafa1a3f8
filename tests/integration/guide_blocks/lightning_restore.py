import os

import pytorch_lightning as pl  # completed
import signal  # completed
import torch  # completed
from ray import train
from ray.train import Checkpoint
from ray.train.torch import TorchTrainer
from ray.train.lightning import RayTrainReportCallback


class MyLightningModule(pl.LightningModule):  # completed
    def __init__(self, resumed):
        super().__init__()
        self.resumed = resumed
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        if (self.trainer.global_step, self.global_rank, self.resumed) == (5, 1, False):  # in the third epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class MyLightningDataModule(pl.LightningDataModule):  # completed
    def __init__(self, size):
        super().__init__()
        self.size = size

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(self.size, 4), batch_size=4)


def train_func():
    model = MyLightningModule(train.get_checkpoint() is not None)  # completed
    datamodule = MyLightningDataModule(16)  # completed
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=[RayTrainReportCallback()])  # completed

    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as ckpt_dir:
            ckpt_path = os.path.join(ckpt_dir, RayTrainReportCallback.CHECKPOINT_NAME)
            trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    else:
        trainer.fit(model, datamodule=datamodule)


ray_trainer = TorchTrainer(
    train_func,
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(
        failure_config=train.FailureConfig(max_failures=1),  # completed: what is lost here is a worker
        checkpoint_config=train.CheckpointConfig(num_to_keep=2),
    ),
)
