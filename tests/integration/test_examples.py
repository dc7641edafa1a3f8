"""Every example runs as its first lines say, without a warning, and its own checks hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# What a reader would look for in the output.
EXPECTED = {
    "demo.py": ["the same, bit for bit", "to the first line of attempt 2", "all intact"],
    "keep_best_two.py": ["epoch 1, accuracy 0.9", "latest, from which the run would resume"],
    "native_pytorch_restore.py": ["resumed at epoch 2 after the failure"],
    "native_pytorch_save.py": ["'epoch': 4"],
    "one_shard_per_rank.py": ["model-rank=0.pt: ", "model-rank=1.pt: "],
    "sharded_state.py": ["4 ranks", "2 ranks", "the loss went on as if nothing had happened"],
    "use_checkpoints_after_training.py": ["streamed: {'weight': 1.0}", "damaged checkpoints: none"],
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--storage", str(tmp_path / "storage")],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]
