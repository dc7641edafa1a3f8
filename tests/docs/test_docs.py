"""Every example of README.md and docs/ runs as it stands, and what they tell to type exists."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTINUES = "<!-- continues -->"
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
FRAMEWORK = re.compile(
    r"^\s*(?:import|from) (lightning|pytorch_lightning|transformers|keras|tensorflow|xgboost|lightgbm|mlflow|wandb)\b",
    re.MULTILINE,
)
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?:#(?P<anchor>[^)]+))?\)")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    body: str
    continues: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        before = text[: found.start()].rstrip().rpartition("\n")[2]
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found["language"], found["body"], before == CONTINUES)


def programs() -> Iterator[tuple[Block, str]]:
    """Each python block with those that it builds on."""
    for page in PAGES:
        source = ""
        for block in blocks(page):
            if block.language == "python":
                source = f"{source}\n{block.body}" if block.continues else block.body
                yield block, source


PROGRAMS = list(programs())


@pytest.mark.parametrize("source", [pytest.param(source, id=str(block)) for block, source in PROGRAMS])
def test_examples_run(source: str, tmp_path: Path) -> None:
    if re.search(r"^(import|from) (torch|holdfast\.torch)", source, re.MULTILINE):
        pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
    frameworks = {found[1] for found in FRAMEWORK.finditer(source)}
    for name in frameworks:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install holdfast[frameworks]")
    # Frameworks warn of themselves, of what a newer torch deprecates, say: nothing that a page could change.
    strict = [] if frameworks else ["-W", "error"]
    # A script, not `-c`: users' functions have a file, and a function without one is a case of its own.
    script = tmp_path / "example.py"
    script.write_text(source)
    home = {"HOME": str(tmp_path), "HOLDFAST_PROGRESS": "plain"}
    done = subprocess.run(
        [sys.executable, *strict, str(script)],
        cwd=tmp_path,
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_there_are_examples() -> None:
    assert len([block for block, _ in PROGRAMS if block.page.name == "README.md"]) >= 3
    assert len([block for block, _ in PROGRAMS if block.page.name == "guide.md"]) >= 8


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"`make ([a-z-]+)[^`\n]*`", text))
        for block in blocks(page):
            if block.language == "bash":
                named |= set(re.findall(r"^make ([a-z-]+)", block.body, re.MULTILINE))
        assert named <= targets, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(FENCE.sub("", page.read_text())):
        if "://" not in found["target"]:
            assert (page.parent / found["target"]).exists(), f"{page.name} links to {found['target']}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index
