"""Two DDP workers; rank 1 kills itself once; how long until the function begins again.

python killed.py (holdfast|ray) DIRECTORY

Writes `times.json`: `{"restart_s": …}` from just before the SIGKILL to the first line of the next attempt's rank 0.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

library, directory = sys.argv[1], Path(sys.argv[2])

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
    now = time.monotonic()
    killed = Path(config["directory"], "killed")
    rank = train.get_context().get_world_rank()
    if killed.exists():
        if rank == 0:
            restart_s = now - float(killed.read_text())
            Path(config["directory"], "times.json").write_text(json.dumps({"restart_s": restart_s}))
        return
    model = prepare_model(torch.nn.Linear(8, 1))
    model(torch.randn(16, 8)).square().mean().backward()
    train.report({"loss": 1.0})
    torch.distributed.barrier()
    if rank == 1:
        killed.write_text(repr(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    model(torch.randn(16, 8)).square().mean().backward()  # waits for rank 1, which is gone
    time.sleep(600)


TorchTrainer(
    step,
    train_loop_config={"directory": str(directory)},
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(
        name="killed",
        storage_path=str(directory / "runs"),
        failure_config=train.FailureConfig(max_failures=1),
    ),
).fit()
