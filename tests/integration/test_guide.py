"""Scripts written against Ray Train's checkpointing guide run after nothing but replacing its name.

`guide_blocks/` holds the guide's native PyTorch blocks (Apache-2.0, The Ray Team) in their own spelling. Where a block has
a placeholder, or uses a name that it never defines, the line that completes it says `completed`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKS = Path(__file__).parent / "guide_blocks"


def moved(name: str) -> str:
    """A block after the replacement that a user is asked to make."""
    text = (BLOCKS / name).read_text()
    assert "ray" in text
    text = text.replace("from ray import train", "import holdfast as train").replace("ray.train", "holdfast")
    assert "ray" not in text.lower().replace("array", "")
    return text


def run(script: str, tmp_path: Path) -> str:
    """Runs a script where nothing of it outlives the test, and gives what it printed."""
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONWARNINGS": "error", "HOLDFAST_PROGRESS": "plain"}
    done = subprocess.run(
        [sys.executable, str(path)],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_native_pytorch_save(tmp_path: Path) -> None:
    end = """
import json
print(json.dumps({"kept": len(result.best_checkpoints), "files": [f.path for f in result.checkpoint.files()],
                  "metrics": sorted(result.metrics)}))
"""
    told = json.loads(run(moved("native_save.py") + end, tmp_path).splitlines()[-1])
    assert told == {"kept": 5, "files": ["model.pt"], "metrics": ["loss"]}


def test_native_pytorch_restore_goes_on_where_it_failed(tmp_path: Path) -> None:
    end = """
import json
reports = train.Run(result.path).reports()
print(json.dumps({"attempts": [r["attempt"] for r in reports],
                  "epoch": torch.load(os.path.join(result.checkpoint.path, "extra_state.pt"))["epoch"]}))
"""
    told = json.loads(run(moved("native_restore.py") + end, tmp_path).splitlines()[-1])
    # Five reports of five epochs: the two before the error, and the three that were left.
    assert told == {"attempts": [1, 1, 2, 2, 2], "epoch": 4}


def test_only_rank_zero_saves(tmp_path: Path) -> None:
    end = """
from holdfast.torch import TorchTrainer
result = TorchTrainer(train_fn, train_loop_config={}, scaling_config=train.ScalingConfig(num_workers=2)).fit()
print([(f.path, f.rank) for f in result.checkpoint.files()])
"""
    assert run(moved("rank_zero_saves.py") + end, tmp_path).splitlines()[-1] == "[('model.pt', 0)]"


def test_every_rank_saves_its_shard(tmp_path: Path) -> None:
    script = moved("distributed.py").replace("s3://bucket/", str(tmp_path / "bucket"))
    end = """
result = trainer.fit()
print([(f.path, f.rank) for f in result.checkpoint.files()])
"""
    told = run(script + end, tmp_path).splitlines()[-1]
    assert told == "[('model-rank=0.pt', 0), ('model-rank=1.pt', 1)]"


@pytest.mark.parametrize("name", ["configure.py", "after_training.py"])
def test_blocks_that_train_nothing(name: str, tmp_path: Path) -> None:
    run(moved(name).replace("/tmp/test-checkpoint", str(tmp_path / "test-checkpoint")), tmp_path)


@pytest.mark.parametrize("name", sorted(path.name for path in BLOCKS.glob("*.py")))
def test_the_line_for_sed_moves_a_script(name: str, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "coming-from-ray.md").read_text()
    line = page.partition("```bash\n")[2].partition("\n```")[0]
    assert line.startswith("sed -i ")
    (tmp_path / "script.py").write_text((BLOCKS / name).read_text())
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    found = (tmp_path / "script.py").read_text()
    compile(found, name, "exec")
    text = (
        (BLOCKS / name)
        .read_text()
        .replace("from ray import train", "import holdfast as train")
        .replace("ray.train", "holdfast")
    )
    assert found.split("\n") == ["" if each == "import ray" else each for each in text.split("\n")]
