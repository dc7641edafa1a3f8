"""What is published works: the wheel alone, in an empty environment, runs the README's first example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What pip says where it has no way to an index; anything else that fails is a fault of ours.
NO_INDEX = re.compile(
    r"NewConnectionError|ConnectTimeoutError|Name or service not known|Temporary failure in name resolution|"
    r"Network is unreachable|ProxyError|from versions: none"
)


def environment() -> dict[str, str]:
    # Neither this repository nor the installation that runs the tests may lend a module.
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT, cwd=directory)
    assert built.returncode == 0, f"{built.stdout}\n{built.stderr}"
    (found,) = directory.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "holdfast/__init__.py" in names
    assert "holdfast/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    strangers = [name for name in names if not name.startswith("holdfast") or "__pycache__" in name]
    assert strangers == []


def test_the_wheel_alone_runs_the_first_example(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    made = run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    installed = run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    if installed.returncode != 0 and NO_INDEX.search(installed.stderr):
        pytest.skip("pip reaches no index here, so the wheel's dependencies cannot be installed beside it")
    assert installed.returncode == 0, installed.stderr
    modules = run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path).stdout
    assert "torch" not in modules
    example = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert example is not None
    (tmp_path / "example.py").write_text(example[1])
    done = run(python, "-W", "error", "example.py", cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "checkpoint_000010" in done.stdout
    assert (tmp_path / "runs" / "counting" / "checkpoint_000010" / "state.json").exists()
