from __future__ import annotations

import threading

import pytest

from holdfast.config import CheckpointConfig
from holdfast.errors import StorageError
from holdfast.persistence import layout
from holdfast.persistence.catalog import load
from holdfast.stores import open_store
from support.failing_store import WatchedStore, refuse
from support.remote_like_store import RemoteLikeStore
from support.runs import hidden, names, open_run, report, visible


class _Gate:
    """Holds a store's flushes back until it is opened, and remembers the order of what was done."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.done: list[tuple[str, str]] = []

    def __call__(self, operation: str, key: str) -> None:
        if operation == "sync" and key.startswith("checkpoint"):
            self.reached.set()
            assert self.open.wait(20)
        self.done.append((operation, key))


def _check_order(done: list[tuple[str, str]]) -> None:
    """At every deletion a newer checkpoint is on disk."""
    flushed: set[str] = set()
    for operation, key in done:
        if operation == "sync":
            flushed.add(key)
        elif operation == "rename" and key.startswith("checkpoint"):
            assert any(name > key for name in flushed), done


def test_nothing_older_is_deleted_before_the_newer_one_is_on_disk(tmp_path) -> None:
    gate = _Gate()
    run = tmp_path / "run"
    writer = open_run(WatchedStore(open_store(run), gate), CheckpointConfig(1))
    for _ in range(3):
        report(writer, tmp_path, {"f": b"1"})
    assert gate.reached.wait(20)
    assert names(writer) == ["checkpoint_000003"]
    assert visible(run) == ["checkpoint_000001", "checkpoint_000002", "checkpoint_000003"]
    gate.open.set()
    writer.close()
    assert visible(run) == ["checkpoint_000003"]
    _check_order(gate.done)


def test_one_that_is_let_go_of_in_the_middle_of_a_round_still_covers_what_the_round_deletes(tmp_path) -> None:
    gate = _Gate()
    writer = open_run(WatchedStore(open_store(tmp_path / "run"), gate), CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    assert gate.reached.wait(20)
    report(writer, tmp_path, {"f": b"2"})
    durability = writer._durability
    superseded = threading.Event()

    def at_the_start_of_a_round() -> None:
        # The round is to flush 2 and to delete 1; now 2 is let go of before it is flushed.
        if not superseded.is_set():
            report(writer, tmp_path, {"f": b"3"})
            superseded.set()

    durability._flush_records = at_the_start_of_a_round
    gate.open.set()
    assert superseded.wait(20)
    writer.close()
    _check_order(gate.done)
    assert visible(tmp_path / "run") == ["checkpoint_000003"]


def test_what_is_let_go_of_before_its_turn_costs_no_flush(tmp_path) -> None:
    gate = _Gate()
    writer = open_run(WatchedStore(open_store(tmp_path / "run"), gate), CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    assert gate.reached.wait(20)
    for _ in range(20):
        report(writer, tmp_path, {"f": b"1"})
    gate.open.set()
    writer.close()
    flushed = [key for operation, key in gate.done if operation == "sync" and key.startswith("checkpoint")]
    assert flushed == ["checkpoint_000001", "checkpoint_000021"]


def test_a_flushed_checkpoint_says_so_to_driver_and_readers(tmp_path) -> None:
    gate = _Gate()
    writer = open_run(WatchedStore(open_store(tmp_path / "run"), gate))
    report(writer, tmp_path, {"f": b"1"})
    assert not load(writer.store).checkpoints[0].durable
    gate.open.set()
    writer.close()
    assert writer.checkpoints()[0].durable
    assert load(writer.store).checkpoints[0].durable


def test_after_a_failed_flush_nothing_older_goes_until_a_later_one_is_flushed(tmp_path, caplog) -> None:
    run = tmp_path / "run"
    store = WatchedStore(open_store(run), refuse(lambda op, key: (op, key) == ("sync", "checkpoint_000002")))
    writer = open_run(store, CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    report(writer, tmp_path, {"f": b"2"})
    writer.close()
    assert visible(run) == ["checkpoint_000001", "checkpoint_000002"]
    assert "checkpoint_000002 could not be flushed" in caplog.text
    assert not load(store).checkpoints[1].durable
    again = open_run(open_store(run), CheckpointConfig(1))
    report(again, tmp_path, {"f": b"3"})
    again.close()
    assert visible(run) == ["checkpoint_000003"]


def test_a_deletion_that_fails_is_tried_again_and_ends_no_run(tmp_path, caplog) -> None:
    failures = iter([True, False])
    run = tmp_path / "run"
    store = WatchedStore(
        open_store(run), refuse(lambda op, key: (op, key) == ("rename", "checkpoint_000001") and next(failures))
    )
    writer = open_run(store, CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    report(writer, tmp_path, {"f": b"2"})
    writer.close()
    assert visible(run) == ["checkpoint_000002"]
    assert "tried again" in caplog.text


def test_an_evicted_directory_that_is_already_gone_does_not_end_the_run(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run, CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    open_store(run).delete_tree("checkpoint_000001")
    report(writer, tmp_path, {"f": b"2"})
    report(writer, tmp_path, {"f": b"3"})
    writer.close()
    assert visible(run) == ["checkpoint_000003"]


def test_a_newest_checkpoint_that_someone_removed_keeps_the_older_one(tmp_path, caplog) -> None:
    gate = _Gate()
    run = tmp_path / "run"
    writer = open_run(WatchedStore(open_store(run), gate), CheckpointConfig(1))
    gate.open.set()
    report(writer, tmp_path, {"f": b"1"})
    gate.open.clear()
    report(writer, tmp_path, {"f": b"2"})
    open_store(run).delete_tree("checkpoint_000002")
    gate.open.set()
    writer.close()
    assert visible(run) == ["checkpoint_000001"]
    assert "checkpoint_000002 was removed" in caplog.text


def test_a_name_that_was_let_go_of_is_free_again_and_its_new_holder_lives(tmp_path) -> None:
    for store in (open_store(tmp_path / "run"), RemoteLikeStore(tmp_path / "remote")):
        writer = open_run(store, CheckpointConfig(1))
        for number in range(12):
            report(writer, tmp_path, {"f": b"%d" % number}, name="ab"[number % 2])
        writer.close()
        assert names(writer) == ["b"]
        assert store.read("b/f") == b"11"
        assert [entry.key for entry in store.list("a", recursive=True)] == []


def test_a_report_that_waits_for_its_name_is_not_held_up_by_the_pace(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("holdfast.persistence.durability._PACE_S", 600.0)
    writer = open_run(tmp_path / "run", CheckpointConfig(1))
    for number in range(6):
        report(writer, tmp_path, {"f": b"1"}, name="ab"[number % 2])
    writer.close()
    assert visible(tmp_path / "run") == ["b"]


def test_a_directory_that_took_a_doomed_name_is_not_deleted(tmp_path, caplog) -> None:
    gate = _Gate()
    run = tmp_path / "run"
    writer = open_run(WatchedStore(open_store(run), gate), CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    report(writer, tmp_path, {"f": b"2"})
    record = run / "checkpoint_000001" / layout.MANIFEST
    record.write_bytes(record.read_bytes().replace(b'"id":"', b'"id":"0'))
    gate.open.set()
    writer.close()
    assert visible(run) == ["checkpoint_000001", "checkpoint_000002"]
    assert "another checkpoint" in caplog.text


def test_strict_returns_only_when_the_disk_has_it(tmp_path) -> None:
    done: list[tuple[str, str]] = []
    store = WatchedStore(open_store(tmp_path / "run"), lambda operation, key: done.append((operation, key)))
    writer = open_run(store, durability="strict")
    report(writer, tmp_path, {"f": b"1"})
    synced = [key for operation, key in done if operation == "sync" and "checkpoint" in key]
    assert synced == [".checkpoint_000001.partial-1.1", "checkpoint_000001"]
    writer.close()
    assert load(store).checkpoints[0].durable


def test_a_disk_that_refuses_a_strict_commit_fails_the_report(tmp_path) -> None:
    store = WatchedStore(open_store(tmp_path / "run"), refuse(lambda op, key: op == "sync" and "partial" in key))
    writer = open_run(store, durability="strict")
    with pytest.raises(StorageError, match="refused"):
        report(writer, tmp_path, {"f": b"1"})
    assert names(writer) == []
    writer.close()
    assert visible(tmp_path / "run") == hidden(tmp_path / "run") == []


def test_a_store_whose_writes_are_durable_needs_no_flush_and_no_note(tmp_path) -> None:
    store = RemoteLikeStore(tmp_path / "run")
    writer = open_run(store, CheckpointConfig(2))
    for _ in range(5):
        report(writer, tmp_path, {"f": b"1"})
    writer.close()
    assert [each.durable for each in load(store).checkpoints] == [True, True]
    assert list(store.list(layout.NOTES)) == []
    assert list(store.list(layout.PENDING)) == []
