from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from holdfast.torch import devices, reproducibility
from holdfast.worker import context, protocol


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes this process the worker of that rank, without a driver to talk to."""
    monkeypatch.setattr(devices, "_gpus_per_worker", 0)
    monkeypatch.setattr(reproducibility, "_seed", None)

    def enter(rank: int, world_size: int) -> None:
        job = protocol.Job(
            payload=b"",
            environment={},
            search_path=[],
            argv=[],
            directory="",
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            local_world_size=world_size,
            node_rank=0,
            run_name="run",
            storage_url="/nowhere",
            run_url="/nowhere/run",
            attempt=1,
            checkpoint=None,
            first_report=0,
        )
        context.enter(context.WorkerState(job, channel=None, files=None))  # type: ignore[arg-type]

    yield enter
    context.leave()
