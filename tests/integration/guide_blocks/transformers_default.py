import transformers  # completed
from sklearn.datasets import load_digits  # completed
from transformers import TrainingArguments

from ray import train
from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer


def train_func(config):
    digits = load_digits()  # completed
    data = [  # completed
        {"pixel_values": (image[None] / 16).astype("float32"), "labels": int(label)}  # completed
        for image, label in zip(digits.images[:32], digits.target[:32])  # completed
    ]  # completed
    shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)  # completed
    model = transformers.ViTForImageClassification(  # completed
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **shape)  # completed
    )  # completed

    # Configure logging, saving, evaluation strategies as usual.
    args = TrainingArguments(
        output_dir="out", num_train_epochs=4, report_to="none", disable_tqdm=True,  # completed
        evaluation_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="step",
    )

    trainer = transformers.Trainer(args, train_dataset=data, eval_dataset=data)  # completed

    # Add a report callback to transformers Trainer
    # =============================================
    trainer.add_callback(RayTrainReportCallback())
    trainer = prepare_trainer(trainer)

    trainer.train()


ray_trainer = TorchTrainer(
    train_func,
    scaling_config=train.ScalingConfig(num_workers=2),  # completed
    run_config=train.RunConfig(
        checkpoint_config=train.CheckpointConfig(
            num_to_keep=3,
            checkpoint_score_attribute="eval_loss",  # The monitoring metric
            checkpoint_score_order="min",
        )
    ),
)

result = ray_trainer.fit()  # completed

# After training finished
checkpoint = result.checkpoint
with checkpoint.as_directory() as checkpoint_dir:
    hf_checkpoint_path = f"{checkpoint_dir}/checkpoint/"
    model = transformers.AutoModelForImageClassification.from_pretrained(hf_checkpoint_path)  # completed
