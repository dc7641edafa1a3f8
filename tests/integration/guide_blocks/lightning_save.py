import torch  # completed
import pytorch_lightning as pl

from ray import train
from ray.train.lightning import RayTrainReportCallback
from ray.train.torch import TorchTrainer


class MyLightningModule(pl.LightningModule):
    def __init__(self):  # completed, down to the guide's hook
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def on_validation_epoch_end(self):
        ...
        mean_acc = calculate_accuracy()
        self.log("mean_accuracy", mean_acc, sync_dist=True)


def calculate_accuracy():  # completed
    return torch.rand(())


class MyLightningDataModule(pl.LightningDataModule):  # completed
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4)


def train_func():
    ...
    model = MyLightningModule()  # completed
    datamodule = MyLightningDataModule()  # completed

    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu",  # completed
        callbacks=[RayTrainReportCallback()]
    )
    trainer.fit(model, datamodule=datamodule)


ray_trainer = TorchTrainer(
    train_func,
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(
        checkpoint_config=train.CheckpointConfig(
            num_to_keep=2,
            checkpoint_score_attribute="mean_accuracy",
            checkpoint_score_order="max",
        ),
    ),
)

result = ray_trainer.fit()  # completed

# After training finished
checkpoint = result.checkpoint
with checkpoint.as_directory() as checkpoint_dir:
    lightning_checkpoint_path = f"{checkpoint_dir}/checkpoint.ckpt"
    state = torch.load(lightning_checkpoint_path)  # completed
