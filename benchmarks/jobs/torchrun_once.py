"""The loop of ddp_once.py without a checkpoint library, for `python -m torch.distributed.run`."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = model(torch.randn(16, 8)).square().mean()
loss.backward()
optimizer.step()
print({"loss": loss.item()})
dist.destroy_process_group()
