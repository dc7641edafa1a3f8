"""The blocks of Ray Train's checkpointing guide that are about Transformers, moved over by replacing a name.

They lie beside those that `tests/integration/test_guide.py` runs. `completed` marks what the guide leaves out.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from support.guide import moved, run

pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
pytest.importorskip("transformers", reason="Transformers is not installed: pip install holdfast[transformers]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install holdfast[transformers]")

# What today's Transformers does not take, as the guide has it; and a trainer without a model.
SLIPS = {
    "evaluation_strategy": "eval_strategy",
    '"step"': '"steps"',
    "transformers.Trainer(args": "transformers.Trainer(model, args",
}


def told(done: subprocess.CompletedProcess[str]) -> dict[str, list[object]]:
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
    return found


END = """
import json
kept = train.Run(result.path).checkpoints
print(json.dumps({"files": sorted(f.path for f in result.checkpoint.files()), "epochs": [k.metrics["epoch"] for k in kept],
                  "names": sorted(n for n in kept[-1].metrics if n.endswith("loss"))}))
"""


def mended(name: str, slips: Iterable[str]) -> str:
    script = moved(name)
    for slip in slips:
        assert slip in script
        script = script.replace(slip, SLIPS[slip])
    return script


def test_the_default_callback(tmp_path: Path) -> None:
    found = told(run(f"{mended('transformers_default.py', SLIPS)}\n{END}", tmp_path))
    assert len(found["epochs"]) in (3, 4)  # the best three, and the latest
    assert found["names"][0] == "eval_loss"
    assert "checkpoint/model.safetensors" in found["files"]
    assert all(str(path).startswith("checkpoint/") for path in found["files"])


def test_an_evaluation_between_two_saves(tmp_path: Path) -> None:
    end = """
import json
reports = train.Run(result.path).reports()
print(json.dumps({"steps": [report["metrics"]["step"] for report in reports],
                  "scored": ["eval_loss" in report["metrics"] for report in reports],
                  "stored": [report["checkpoint"] is not None for report in reports]}))
"""
    script = mended("transformers_arguments.py", ["evaluation_strategy"]) + end
    # A hundred steps so small that threads only wait for each other.
    found = told(run(script, tmp_path, OMP_NUM_THREADS="1"))
    assert found == {"steps": [50, 100], "scored": [True, True], "stored": [False, True]}


def test_the_custom_callback(tmp_path: Path) -> None:
    found = told(run(moved("transformers_custom.py") + END, tmp_path))
    assert found["epochs"] == [1.0, 2.0]
    assert found["names"] == ["eval_loss", "loss"]
    assert {"model.safetensors", "optimizer.pt", "rng_state_0.pth"} <= set(found["files"])


@pytest.mark.slow
def test_what_the_guide_has_and_transformers_does_not_take_is_named(tmp_path: Path) -> None:
    done = run(moved("transformers_default.py"), tmp_path)
    assert done.returncode != 0
    assert "unexpected keyword argument 'evaluation_strategy'" in done.stderr.splitlines()[-1]
