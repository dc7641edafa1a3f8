"""The blocks of Ray Train's checkpointing guide that are about Transformers, moved over by replacing a name.

They lie beside those that `tests/integration/test_guide.py` runs. `completed` marks what the guide leaves out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
pytest.importorskip("transformers", reason="Transformers is not installed: pip install holdfast[transformers]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install holdfast[transformers]")

BLOCKS = Path(__file__).parents[1] / "integration" / "guide_blocks"
# What today's Transformers does not take, as the guide has it; and a trainer without a model.
SLIPS = {
    "evaluation_strategy": "eval_strategy",
    '"step"': '"steps"',
    "transformers.Trainer(args": "transformers.Trainer(model, args",
}


def moved(name: str) -> str:
    text = (BLOCKS / name).read_text().replace("from ray import train", "import holdfast as train")
    text = text.replace("import ray.train", "import holdfast").replace("ray.train.report", "holdfast.report")
    return text.replace("ray.train", "holdfast")


def run(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {**os.environ, "HOME": str(tmp_path), "HOLDFAST_PROGRESS": "plain"}
    return subprocess.run(
        [sys.executable, str(path)],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


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


def test_the_default_callback(tmp_path: Path) -> None:
    script = moved("transformers_default.py")
    for slip, right in SLIPS.items():
        assert slip in script
        script = script.replace(slip, right)
    found = told(run(f"{script}\nresult = ray_trainer.fit()\n{END}", tmp_path))
    assert len(found["epochs"]) in (3, 4)  # the best three, and the latest
    assert found["names"][0] == "eval_loss"
    assert "checkpoint/model.safetensors" in found["files"]
    assert all(str(path).startswith("checkpoint/") for path in found["files"])


def test_the_custom_callback(tmp_path: Path) -> None:
    found = told(run(moved("transformers_custom.py") + END, tmp_path))
    assert found["epochs"] == [1.0, 2.0]
    assert found["names"] == ["eval_loss", "loss"]
    assert {"model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"} <= set(found["files"])


@pytest.mark.slow
def test_what_the_guide_has_and_transformers_does_not_take_is_named(tmp_path: Path) -> None:
    done = run(moved("transformers_default.py") + "\nray_trainer.fit()\n", tmp_path)
    assert done.returncode != 0
    assert "unexpected keyword argument 'evaluation_strategy'" in done.stderr.splitlines()[-1]
