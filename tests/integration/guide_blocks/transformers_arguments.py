import transformers  # completed
from ray import train  # completed
from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer  # completed
from ray.train.torch import TorchTrainer  # completed
from sklearn.datasets import load_digits  # completed
from transformers import TrainingArguments  # completed

args = TrainingArguments(
    output_dir="out",  # completed
    evaluation_strategy="epoch",
    save_strategy="epoch",
)

args = TrainingArguments(
    output_dir="out", max_steps=100, report_to="none", disable_tqdm=True,  # completed
    evaluation_strategy="steps",
    save_strategy="steps",
    eval_steps=50,
    save_steps=100,
)

# And more ...


def train_func():  # completed, to the end
    digits = load_digits()
    data = [
        {"pixel_values": (image[None] / 16).astype("float32"), "labels": int(label)}
        for image, label in zip(digits.images[:16], digits.target[:16])
    ]
    shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **shape)
    )
    trainer = transformers.Trainer(model, args, train_dataset=data, eval_dataset=data)
    trainer.add_callback(RayTrainReportCallback())
    prepare_trainer(trainer).train()


result = TorchTrainer(train_func, scaling_config=train.ScalingConfig(num_workers=0)).fit()
