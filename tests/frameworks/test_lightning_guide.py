"""The blocks of Ray Train's checkpointing guide that are about Lightning, moved over by replacing a name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from support import guide

pytest.importorskip("lightning", reason="Lightning is not installed: pip install holdfast[lightning]")
if importlib.util.find_spec("pytorch_lightning") is None:
    pytest.skip("pytorch_lightning is not installed: pip install pytorch-lightning", allow_module_level=True)

# Trainers without anything of ours, where Lightning is imported after the function has begun.
PLAIN = """
import json, sys
from holdfast import ScalingConfig
from holdfast.torch import TorchTrainer

def work():
    assert not {"lightning", "pytorch_lightning"} & set(sys.modules)
    import lightning.pytorch, pytorch_lightning
    told = []
    for package in (lightning.pytorch, pytorch_lightning):
        for options in ({}, {"devices": "auto"}, {"strategy": "ddp"}):
            trainer = package.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
            told.append([trainer.global_rank, trainer.world_size, type(trainer.strategy).__name__])
    return told

print(json.dumps(TorchTrainer(work, scaling_config=ScalingConfig(num_workers=2)).fit().return_value))
"""


def test_plain_trainers_know_the_workers(tmp_path: Path) -> None:
    assert json.loads(guide.printed(PLAIN, tmp_path)) == [[0, 2, "DDPStrategy"]] * 6


def test_save(tmp_path: Path) -> None:
    end = """
import json
print(json.dumps([sorted(state["state_dict"]), [sorted(metrics) for _, metrics in result.best_checkpoints], result.metrics["step"]]))
"""
    keys, metrics, step = json.loads(guide.printed(guide.moved("lightning_save.py") + end, tmp_path))
    assert keys == ["layer.bias", "layer.weight"]
    assert len(metrics) in (2, 3)  # the best two, and the latest
    assert {*map(tuple, metrics)} == {("epoch", "mean_accuracy", "step")}
    assert step == 8  # four epochs of 16 items, on two workers, in batches of 4


def test_restore(tmp_path: Path) -> None:
    end = """
import json
result = ray_trainer.fit()
reports = train.Run(result.path).reports()
print(json.dumps([[report["attempt"], report["metrics"]["epoch"], report["metrics"]["step"]] for report in reports]))
"""
    told = json.loads(guide.printed(guide.moved("lightning_restore.py") + end, tmp_path))
    assert told == [[1, 0, 2], [1, 1, 4], [2, 2, 6], [2, 3, 8]]


def test_the_custom_callback(tmp_path: Path) -> None:
    """By a slip (`global_rank` holds whether it is 0) all ranks save but the lowest, so one alone saves nothing, and two wait."""
    end = """
result = fit(0)
print(result.checkpoint, result.metrics["epoch"], result.metrics["custom_metric"])
fit(2, late_rank_warning_s=1.0, late_rank_timeout_s=3.0)
"""
    done = guide.run(guide.moved("lightning_custom.py") + end, tmp_path)
    assert "None 3 123" in done.stdout.splitlines()
    assert done.returncode != 0
    assert "rank 0 waits in report for rank 1 (rank 1 has called report 0 times)" in done.stderr
    assert "stacks of rank 1 follow" in done.stderr
    assert "in save_checkpoint" in done.stderr
