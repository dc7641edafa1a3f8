"""Scripts written against Ray Train's checkpointing guide, and what runs them.

`integration/guide_blocks/` holds the guide's blocks (Apache-2.0, The Ray Team) in their own spelling. Where a block has a placeholder,
or uses a name that it never defines, the line that completes it says `completed`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCKS = Path(__file__).parents[1] / "integration" / "guide_blocks"


def replaced(text: str) -> str:
    """A script after the replacement that a user is asked to make."""
    text = text.replace("from ray import train", "import holdfast as train").replace("ray.train", "holdfast")
    return re.sub("^import ray$", "import holdfast", text, flags=re.MULTILINE)


def moved(name: str) -> str:
    """A block after it."""
    text = replaced((BLOCKS / name).read_text())
    assert not re.search(r"\bray\b", text)
    return text


def run(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where nothing of it outlives the test."""
    path = tmp_path / "script.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "HOME": str(tmp_path), "HOLDFAST_PROGRESS": "plain", **environment},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def printed(script: str, tmp_path: Path, **environment: str) -> str:
    """What a script that runs to its end prints last."""
    done = run(script, tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""
