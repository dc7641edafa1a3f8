"""The checkpoint before may become another one while files are on their way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.config import CheckpointConfig
from holdfast.persistence import layout
from holdfast.persistence.checkpoint_writer import CheckpointWriter
from holdfast.persistence.staging import stage
from holdfast.persistence.writer import RunWriter
from support.remote_like_store import RemoteLikeStore
from support.runs import names, open_run, report, write_files
from support.waiting import wait_until

FROZEN = os.urandom(1 << 20)
LIMIT_S = 60.0


class TellingStore(RemoteLikeStore):
    """Says what it is asked to copy, and does something before."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []
        self.copied: list[str] = []
        self.before_copy: Callable[[], None] | None = None
        self.before_mark: Callable[[str], None] = lambda _: None

    def copy(self, source: str, target: str, size_bytes: int, tag: str) -> bool:
        self.asked.append(source)
        if self.before_copy is not None:
            before, self.before_copy = self.before_copy, None
            before()
        is_done = super().copy(source, target, size_bytes, tag)
        if is_done:
            self.copied.append(source)
        return is_done

    def write(self, key: str, data: bytes) -> None:
        self.before_mark(key)
        super().write(key, data)


@pytest.fixture
def store(tmp_path: Path) -> TellingStore:
    return TellingStore(tmp_path / "run")


def store_one(run: RunWriter, source: Path, index: int) -> Callable[[], object]:
    """Stores the file that never changes for a checkpoint; what it returns commits that."""
    checkpoint: CheckpointWriter = run.begin_checkpoint(layout.checkpoint_name(index), index)
    write_files(source / str(index), {"frozen": FROZEN})
    receipt = checkpoint.store_shard(stage(source / str(index), 0)).result(LIMIT_S)
    return lambda: checkpoint.commit([receipt], metrics=b"{}", world_size=1, attempt=1)


def one_file_three_times(store: TellingStore, source: Path, prepare: Callable[[Callable[[], None]], None]) -> None:
    """Three checkpoints of which one is kept. The second is committed, and the first gone, when the prepared moment of the third comes."""
    run = open_run(store, CheckpointConfig(num_to_keep=1))
    try:
        report(run, source, {"frozen": FROZEN})
        second = store_one(run, source, 2)

        def commit_second() -> None:
            second()
            wait_until(lambda: not store.exists("checkpoint_000001"), "the first checkpoint is gone")

        prepare(commit_second)
        store_one(run, source, 3)()
        assert names(run) == ["checkpoint_000003"]
        assert store.read("checkpoint_000003/frozen") == FROZEN
    finally:
        run.close()


def test_a_file_is_shared_with_the_newest_checkpoint_of_its_own_turn(store: TellingStore, tmp_path: Path) -> None:
    def prepare(commit_second: Callable[[], None]) -> None:
        def mark(key: str) -> None:
            if key == layout.pending_key("checkpoint_000003"):
                store.before_mark = lambda _: None
                commit_second()

        store.before_mark = mark

    one_file_three_times(store, tmp_path, prepare)
    assert store.copied == ["checkpoint_000001/frozen", "checkpoint_000002/frozen"]


def test_a_checkpoint_that_goes_while_it_is_copied_from_gives_way_to_the_newest(
    store: TellingStore, tmp_path: Path
) -> None:
    def prepare(commit_second: Callable[[], None]) -> None:
        store.before_copy = commit_second

    one_file_three_times(store, tmp_path, prepare)
    assert store.asked[-2:] == ["checkpoint_000001/frozen", "checkpoint_000002/frozen"]
    assert store.copied[-1] == "checkpoint_000002/frozen"
