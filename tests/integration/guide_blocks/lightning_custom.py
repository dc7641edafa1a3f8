import pytorch_lightning as pl  # completed: the imports
import torch  # completed
from ray.train.torch import TorchTrainer  # completed
import os
from tempfile import TemporaryDirectory

from pytorch_lightning.callbacks import Callback

import ray
import ray.train
from ray.train import Checkpoint


class CustomRayTrainReportCallback(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        should_checkpoint = trainer.current_epoch % 3 == 0

        with TemporaryDirectory() as tmpdir:
            # Fetch metrics from `self.log(..)` in the LightningModule
            metrics = trainer.callback_metrics
            metrics = {k: v.item() for k, v in metrics.items()}

            # Add customized metrics
            metrics["epoch"] = trainer.current_epoch
            metrics["custom_metric"] = 123

            checkpoint = None
            global_rank = ray.train.get_context().get_world_rank() == 0
            if global_rank == 0 and should_checkpoint:
                # Save model checkpoint file to tmpdir
                ckpt_path = os.path.join(tmpdir, "ckpt.pt")
                trainer.save_checkpoint(ckpt_path, weights_only=False)

                checkpoint = Checkpoint.from_directory(tmpdir)

            # Report to train session
            ray.train.report(metrics=metrics, checkpoint=checkpoint)


class MyLightningModule(pl.LightningModule):  # completed, to the end
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def train_func():
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=[CustomRayTrainReportCallback()])
    trainer.fit(MyLightningModule(), torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4))


def fit(num_workers, **options):
    scaling = ray.train.ScalingConfig(num_workers=num_workers)
    return TorchTrainer(train_func, scaling_config=scaling, run_config=ray.train.RunConfig(**options)).fit()
