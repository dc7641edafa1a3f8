"""Every example of README.md and docs/ runs as it stands, and what they tell to type exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import pytest

from support.s3_server import KEYS, S3Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTINUES = "<!-- continues -->"
# It uses the bucket named so, by what the environment says of the server.
IN_A_BUCKET = "<!-- in a bucket -->"
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
# Warnings about a framework's own code that nobody who uses it can do anything about: Keras 3.15 saving with NumPy 2.4.
NOT_OURS = ["-W", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"]
# What a block imports that not every environment has.
OPTIONAL = {
    r"torch|holdfast\.torch": "torch",
    r"transformers|holdfast\.huggingface": "transformers",
    r"accelerate": "accelerate",
    r"lightning|pytorch_lightning|holdfast\.lightning": "lightning",
    r"keras|holdfast\.tensorflow": "keras",
    r"tensorflow|holdfast\.tensorflow import": "tensorflow",
    r"xgboost|holdfast\.xgboost": "xgboost",
    r"lightgbm|holdfast\.lightgbm": "lightgbm",
    r"deepspeed": "deepspeed",
    r"flax": "flax",
    r"jax": "jax",
    r"megatron": "megatron",
    r"orbax": "orbax",
    r"holdfast\.tracking import TensorBoardCallback": "tensorboard",
    r"holdfast\.tracking import MLflowCallback": "mlflow",
    r"holdfast\.tracking import WandbCallback": "wandb",
}
# Libraries that warn of their own doings when they are imported.
LOUD = r"deepspeed|jax|lightning|megatron|orbax|pytorch_lightning"
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?:#(?P<anchor>[^)]+))?\)")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    body: str
    continues: bool
    in_a_bucket: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        before = text[: found.start()].rstrip().rpartition("\n")[2]
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found["language"], found["body"], before == CONTINUES, before == IN_A_BUCKET)


def programs(*, in_a_bucket: bool) -> Iterator[tuple[Block, str]]:
    """The python blocks that stand alone, and of those that build on each other the last, with all before it."""
    for page in PAGES:
        found = [each for each in blocks(page) if each.language == "python" and each.in_a_bucket is in_a_bucket]
        source = ""
        for block, following in zip_longest(found, found[1:]):
            source = f"{source}\n{block.body}" if block.continues else block.body
            if following is None or not following.continues:
                yield block, source


def imports(source: str, names: str) -> bool:
    return re.search(rf"^\s*(import|from) ({names})\b", source, re.MULTILINE) is not None


PROGRAMS = list(programs(in_a_bucket=False))


@pytest.mark.parametrize("source", [pytest.param(source, id=str(block)) for block, source in PROGRAMS])
def test_examples_run(source: str, tmp_path: Path) -> None:
    check_runs(source, tmp_path)


@pytest.mark.parametrize(
    "source", [pytest.param(source, id=str(block)) for block, source in programs(in_a_bucket=True)]
)
def test_examples_run_in_a_bucket(source: str, tmp_path: Path, server: S3Server) -> None:
    server.make_bucket("bucket")
    endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_ALLOW_HTTP": "true"}
    check_runs(source, tmp_path, {**KEYS, **endpoint})


def check_runs(source: str, tmp_path: Path, environment: Mapping[str, str] | None = None) -> None:
    for imported, library in OPTIONAL.items():
        if imports(source, imported) and find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    # A script, not `-c`: users' functions have a file, and a function without one is a case of its own.
    script = tmp_path / "example.py"
    script.write_text(source)
    home = {"HOME": str(tmp_path), "HOLDFAST_PROGRESS": "plain"}
    done = subprocess.run(
        [sys.executable, *([] if imports(source, LOUD) else ["-W", "error", *NOT_OURS]), str(script)],
        cwd=tmp_path,
        env={**os.environ, **home, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=280,  # frameworks take long to import, also in workers
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_there_are_examples() -> None:
    assert len([block for block, _ in PROGRAMS if block.page.name == "README.md"]) >= 2
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
