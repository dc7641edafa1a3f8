from __future__ import annotations

import threading
from pathlib import Path

import pytest

from holdfast.persistence import layout
from holdfast.persistence.catalog import load, load_newest
from holdfast.persistence.reads import NUM_AT_ONCE, read_many
from holdfast.stores import open_store
from support.remote_like_store import RemoteLikeStore
from support.runs import open_run, report


class Counting(RemoteLikeStore):
    """Notes what is read."""

    keys: list[str]

    def read(self, key: str) -> bytes:
        self.keys.append(key)
        return super().read(key)


def _fill(path: Path, tmp_path: Path, num: int, **names: str) -> None:
    writer = open_run(path)
    for index in range(1, num + 1):
        report(writer, tmp_path, {"f": b"%d" % index}, {"index": index}, name=names.get(f"n{index}"))
    writer.close()


def _newest(path: Path) -> tuple[str | None, int]:
    """The newest checkpoint, which is that of the whole catalog, and how many manifests were read for it."""
    store = Counting(path)
    store.keys = []
    found = load_newest(store).checkpoints
    whole = load(open_store(path)).checkpoints
    assert [each.name for each in found[-1:]] == [each.name for each in whole[-1:]]
    return (found[-1].name if found else None), sum(key.endswith(layout.MANIFEST) for key in store.keys)


def test_the_newest_takes_one_manifest(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path, 30)
    assert _newest(tmp_path / "run") == ("checkpoint_000030", 1)


def test_what_is_no_valid_checkpoint_is_passed_over(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path, 30)
    (tmp_path / "run" / "checkpoint_000030" / layout.MANIFEST).write_bytes(b"junk")
    (tmp_path / "run" / "checkpoint_000029" / layout.MANIFEST).unlink()
    again = open_run(tmp_path / "run")
    Path(tmp_path, "run", "checkpoint_000028", "f").write_bytes(b"other")
    assert again.latest_valid().name == "checkpoint_000027"
    again.close()
    assert _newest(tmp_path / "run") == ("checkpoint_000027", 1 + NUM_AT_ONCE)


def test_names_of_the_users_own_are_all_looked_at(tmp_path) -> None:
    _fill(tmp_path / "own", tmp_path, 5, n4="best")
    assert _newest(tmp_path / "own") == ("checkpoint_000005", 5)
    _fill(tmp_path / "last", tmp_path, 5, n5="best")
    assert _newest(tmp_path / "last") == ("best", 5)
    _fill(tmp_path / "alike", tmp_path, 5, n5="checkpoint_000900", n3="checkpoint_000800")
    assert _newest(tmp_path / "alike")[0] == "checkpoint_000900"


def test_a_run_without_checkpoints_has_none(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path, 0)
    assert _newest(tmp_path / "run") == (None, 0)


def test_checkpoints_that_were_copied_by_hand_are_read_without_epochs(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path, 3)
    (tmp_path / "copies").mkdir()
    for name in ("checkpoint_000001", "checkpoint_000003"):
        (tmp_path / "run" / name).rename(tmp_path / "copies" / name)
    assert _newest(tmp_path / "copies") == ("checkpoint_000003", 1)


def test_reads_come_in_order_and_no_more_at_once_than_are_allowed(tmp_path) -> None:
    lock = threading.Lock()
    now = [0, 0]

    def read(item: int) -> int:
        with lock:
            now[0] += 1
            now[1] = max(now)
        with lock:
            now[0] -= 1
        if item == 90:
            raise ValueError("item 90")
        return item

    results = read_many(RemoteLikeStore(tmp_path), read, range(100))
    assert [next(results) for _ in range(90)] == list(range(90))
    with pytest.raises(ValueError, match="item 90"):
        next(results)
    assert now[1] <= NUM_AT_ONCE
    begun = []
    some = read_many(RemoteLikeStore(tmp_path), begun.append, range(1000))
    next(some)
    some.close()
    assert len(begun) <= NUM_AT_ONCE + 2
    assert list(read_many(open_store(tmp_path), str, [1, 2])) == ["1", "2"]
