"""Two DDP workers, one step, one report. With `hold`, they then wait to be looked at.

python ddp_once.py (holdfast|ray) DIRECTORY [hold]
"""

import sys
import time
from pathlib import Path

library, directory = sys.argv[1], Path(sys.argv[2])
hold = sys.argv[3:] == ["hold"]

import torch

if library == "ray":
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer, prepare_model

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=str(directory / "ray"))
else:
    import holdfast as train
    from holdfast.torch import TorchTrainer, prepare_model


def step(config):
    model = prepare_model(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(torch.randn(16, 8)).square().mean()
    loss.backward()
    optimizer.step()
    train.report({"loss": loss.item()})
    rank = train.get_context().get_world_rank()
    if config["hold"]:
        Path(config["directory"], f"ready-{rank}").touch()
        deadline = time.monotonic() + 120
        while not Path(config["directory"], "go").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


TorchTrainer(
    step,
    train_loop_config={"directory": str(directory), "hold": hold},
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(name="once", storage_path=str(directory / "runs")),
).fit()
