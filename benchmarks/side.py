"""The two sides of a comparison: which Python runs a job, with which library and environment."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.process import Footprint, JobError, Usage, footprint, job_directory, run_job

JOBS = Path(__file__).parent / "jobs"
_READY_S = 120.0
_JOB_S = 900.0
_SETTLE_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """What a job took and what it wrote to `times.json`."""

    usage: Usage
    times: Any


@dataclass(frozen=True)
class Side:
    """A library in an environment of its own.

    Attributes:
        name: The library, as the jobs know it by their first argument.
        environment: Variables for its processes.
    """

    name: str
    python: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str) -> Side:
        """The same environment for another library in it, or for another way to use it."""
        return dataclasses.replace(self, name=name)

    def run(
        self, job: str, *arguments: str, variables: Mapping[str, str] | None = None, parent: Path | None = None
    ) -> Outcome:
        """Runs a job in a directory that is gone afterwards.

        Args:
            variables: Environment variables for this job alone.
            parent: Where the directory is made; by default where temporary files go.
        """
        with job_directory(parent) as directory:
            usage = run_job(
                self._command(job, directory, arguments),
                environment={**self.environment, **(variables or {})},
                timeout_s=_JOB_S,
            )
            written = directory / "times.json"
            return Outcome(usage, json.loads(written.read_text()) if written.exists() else None)

    def look(self, job: str) -> Footprint:
        """What a job holds once all its workers have reported and wait."""
        found: list[Footprint] = []
        with job_directory() as directory:
            run_job(
                self._command(job, directory, ("hold",)),
                environment=self.environment,
                while_running=_look_when_ready(directory, found),
            )
        return found[0]

    def command(self, *arguments: str) -> Usage:
        """Runs this side's Python with any arguments."""
        return run_job([self.python, *arguments], environment=self.environment)

    def _command(self, job: str, directory: Path, arguments: tuple[str, ...]) -> list[str]:
        return [self.python, str(JOBS / job), self.name, str(directory), *arguments]


def _look_when_ready(directory: Path, found: list[Footprint]) -> Callable[[int], None]:
    def look(pid: int) -> None:
        deadline = time.monotonic() + _READY_S
        while not all((directory / f"ready-{rank}").exists() for rank in (0, 1)):
            if time.monotonic() > deadline:
                raise JobError(f"the workers were not ready after {_READY_S:.0f} s")
            time.sleep(0.05)
        time.sleep(_SETTLE_S)
        found.append(footprint(pid))
        (directory / "go").touch()

    return look


def ours() -> Side:
    """Holdfast, in the environment that runs this."""
    source = Path(__file__).parent.parent / "src"
    return Side("holdfast", sys.executable, {"PYTHONPATH": str(source), "HOLDFAST_PROGRESS": "plain"})


def peer(python: str) -> Side:
    """Ray Train, in its own environment, which says nothing to anybody.

    Raises:
        JobError: There is no such Python.
    """
    if shutil.which(python) is None:
        raise JobError(f"the peer's Python {python} does not exist; `make bench` makes it, or name one: PEER_PYTHON=…")
    return Side(
        "ray", python, {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1", "PYTHONWARNINGS": "ignore"}
    )
