"""Trains with Lightning or Transformers on 2 workers, a checkpoint an epoch by the library's own callback, or none.

python framework_fit.py (holdfast|holdfast_async|holdfast_none|ray) DIRECTORY (lightning|transformers) EPOCHS

Writes `times.json`: `fit_s`, the seconds of the framework's training call on rank 0, and `written_bytes`, what all workers and the
driver wrote to disk (`write_bytes` of proc(5), which counts what the kernel copies, too) from the beginning of that call on.
"""

import json
import sys
import time
from pathlib import Path

library, directory, framework, epochs = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

if library == "ray":
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(directory / "ray"))
else:
    import holdfast as train
    from holdfast.torch import TorchTrainer

_WIDTH = 1024
_STEPS = 4


def loop(config):
    import torch

    library, epochs = config["library"], config["epochs"]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = torch.randn(_STEPS * 2 * 8, _WIDTH)
    network = torch.nn.Sequential(
        torch.nn.Linear(_WIDTH, 4 * _WIDTH), torch.nn.ReLU(), torch.nn.Linear(4 * _WIDTH, _WIDTH)
    )

    def written():
        return int(Path("/proc/self/io").read_text().split("\nwrite_bytes: ")[1].split()[0])

    def with_lightning():
        import lightning.pytorch as pl

        class Module(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.network = network

            def training_step(self, batch, _):
                loss = (self.network(batch[0]) - batch[0]).square().mean()
                self.log("loss", loss)
                return loss

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters())

        callbacks = []
        if library == "ray":
            from ray.train.lightning import RayTrainReportCallback

            callbacks = [RayTrainReportCallback()]
        elif library == "holdfast":
            from holdfast.lightning import RayTrainReportCallback

            callbacks = [RayTrainReportCallback()]
        elif library == "holdfast_async":
            from holdfast import CheckpointUploadMode
            from holdfast.lightning import RayTrainReportCallback

            callbacks = [RayTrainReportCallback(checkpoint_upload_mode=CheckpointUploadMode.ASYNC)]
        if library == "ray":
            from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

            plugins, strategy = [RayLightningEnvironment()], RayDDPStrategy()
        else:
            from holdfast.lightning import RayDDPStrategy, RayLightningEnvironment

            plugins, strategy = [RayLightningEnvironment()], RayDDPStrategy()
        trainer = pl.Trainer(
            max_epochs=epochs,
            devices="auto",
            accelerator="cpu",
            strategy=strategy,
            plugins=plugins,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(values), batch_size=8)
        return lambda: trainer.fit(Module(), loader)

    def with_transformers():
        import transformers

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self, values, labels=None):
                found = self.network(values)
                return {"loss": (found - values).square().mean(), "logits": found}

        saves = "no" if library == "holdfast_none" else "epoch"
        arguments = transformers.TrainingArguments(
            output_dir=str(Path(config["directory"], "out")),
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            save_strategy=saves,
            save_total_limit=1,
            logging_strategy="epoch",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        rows = [{"values": value, "labels": value} for value in values]
        trainer = transformers.Trainer(Model(), arguments, train_dataset=rows)
        if library == "ray":
            from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer

            class Wait(transformers.TrainerCallback):
                """Else one rank copies what the other still writes, and the job fails."""

                def on_save(self, *_, **__):
                    torch.distributed.barrier()

            trainer.add_callback(Wait())
        else:
            from holdfast.huggingface.transformers import RayTrainReportCallback, prepare_trainer
        if library == "holdfast_async":
            from holdfast import CheckpointUploadMode

            trainer.add_callback(RayTrainReportCallback(checkpoint_upload_mode=CheckpointUploadMode.ASYNC))
        elif library != "holdfast_none":
            trainer.add_callback(RayTrainReportCallback())
        return prepare_trainer(trainer).train

    fit = {"lightning": with_lightning, "transformers": with_transformers}[config["framework"]]()
    before, begin = written(), time.perf_counter()
    fit()
    fit_s = time.perf_counter() - begin
    rank = train.get_context().get_world_rank()
    Path(config["directory"], f"worker-{rank}.json").write_text(json.dumps([fit_s, written() - before]))


TorchTrainer(
    loop,
    train_loop_config={"library": library, "directory": str(directory), "framework": framework, "epochs": epochs},
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(
        name="fit",
        storage_path=str(directory / "runs"),
        checkpoint_config=train.CheckpointConfig(num_to_keep=1),
    ),
).fit()

workers = [json.loads((directory / f"worker-{rank}.json").read_text()) for rank in (0, 1)]
driver = int(Path("/proc/self/io").read_text().split("\nwrite_bytes: ")[1].split()[0])
(directory / "times.json").write_text(
    json.dumps({"fit_s": workers[0][0], "written_bytes": driver + sum(written for _, written in workers)})
)
