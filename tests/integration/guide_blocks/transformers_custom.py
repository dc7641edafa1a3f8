import ray.train  # completed
import transformers  # completed
from sklearn.datasets import load_digits  # completed
from ray.train import Checkpoint  # completed
from ray.train.torch import TorchTrainer  # completed

from ray import train

from transformers.trainer_callback import TrainerCallback


class MyTrainReportCallback(TrainerCallback):
    def __init__(self):
        super().__init__()
        self.metrics = {}

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        """Log is called on evaluation step and logging step."""
        self.metrics.update(logs)

    def on_save(self, args, state, control, **kwargs):
        """Event called after a checkpoint save."""

        checkpoint = None
        if train.get_context().get_world_rank() == 0:
            # Build a Ray Train Checkpoint from the latest checkpoint
            checkpoint_path = transformers.trainer.get_last_checkpoint(args.output_dir)
            checkpoint = Checkpoint.from_directory(checkpoint_path)

        # Report to Ray Train with up-to-date metrics
        ray.train.report(metrics=self.metrics, checkpoint=checkpoint)

        # Clear the metrics buffer
        self.metrics = {}


def train_func(config):  # completed
    digits = load_digits()
    data = [
        {"pixel_values": (image[None] / 16).astype("float32"), "labels": int(label)}
        for image, label in zip(digits.images[:32], digits.target[:32])
    ]
    shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **shape)
    )
    args = transformers.TrainingArguments(
        output_dir="out", num_train_epochs=2, report_to="none", disable_tqdm=True,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch",
    )
    trainer = transformers.Trainer(model, args, train_dataset=data, eval_dataset=data)
    trainer.add_callback(MyTrainReportCallback())
    trainer.train()


result = TorchTrainer(  # completed
    train_func,
    scaling_config=train.ScalingConfig(num_workers=2),
).fit()
