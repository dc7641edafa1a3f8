from __future__ import annotations

import subprocess
import sys
import threading

import msgspec
import pytest

from holdfast.errors import FormatError, RunInUseError, StoreExistsError
from holdfast.persistence import layout
from holdfast.persistence.lease import acquire, current_driver
from holdfast.persistence.opening import survey
from holdfast.records import EpochRecord
from holdfast.stores import open_store
from support.failing_store import WatchedStore
from support.remote_like_store import RemoteLikeStore
from support.runs import names, open_run, read_json, report


def _acquire(store, holder="me"):
    return acquire(store, "run", holder=holder, survey=lambda: survey(store))


def test_a_second_driver_is_told_who_holds_the_run_and_since_when(tmp_path) -> None:
    store = open_store(tmp_path)
    held = _acquire(store, "ann on host, process 7")
    with pytest.raises(RunInUseError, match=r"'run'.*ann on host, process 7, since 2\d{3}-"):
        _acquire(store, "bob")
    driver = current_driver(store)
    assert driver is not None
    assert driver.startswith("ann on host, process 7, since ")
    held.release()
    held.release()
    assert current_driver(store) is None
    _acquire(store, "bob").release()


def test_readers_that_ask_for_the_driver_all_the_time_keep_nobody_out(tmp_path) -> None:
    store = open_store(tmp_path)
    _acquire(store).release()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            current_driver(store)

    readers = [threading.Thread(target=ask) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(30):
            _acquire(store).release()
    finally:
        over.set()
        for reader in readers:
            reader.join()


def test_two_drivers_with_one_run_name_never_overwrite_each_other(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    report(writer, tmp_path, {"f": b"1"})
    child = (
        "import sys; from support.runs import open_run\n"
        "from holdfast.errors import RunInUseError\n"
        "try: open_run(sys.argv[1])\n"
        "except RunInUseError as error: print(error); sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, str(run)], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 7, done.stderr
    assert "is being driven by" in done.stdout
    assert names(writer) == ["checkpoint_000001"]
    writer.close()


def test_a_dead_driver_holds_nothing(tmp_path) -> None:
    run = tmp_path / "run"
    child = "import os, sys; from support.runs import open_run; open_run(sys.argv[1]); os._exit(9)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", child, str(run)], env=environment).returncode == 9
    writer = open_run(run)
    assert writer.epoch == 2
    writer.close()


def test_of_two_drivers_without_locks_one_wins_and_the_other_is_told(tmp_path) -> None:
    store = RemoteLikeStore(tmp_path)
    rival = EpochRecord(epoch=1, holder="bob", created="2026-01-01", nonce="other")

    def before(operation: str, key: str) -> None:
        if operation == "create" and not store.exists(key):
            store.write(key, msgspec.json.encode(rival))

    with pytest.raises(RunInUseError, match="bob, since 2026-01-01"):
        _acquire(WatchedStore(store, before))


class _LosesCreates(WatchedStore):
    def create(self, key: str, data: bytes) -> None:
        self._store.create(key, data)
        raise StoreExistsError("a repeated request found its own first answer")


def test_a_lost_answer_to_our_own_epoch_record_is_recognised(tmp_path) -> None:
    held = _acquire(_LosesCreates(RemoteLikeStore(tmp_path), lambda *_: None))
    assert held.epoch == 1


def test_whatever_a_replaced_driver_still_writes_is_void(tmp_path) -> None:
    store = RemoteLikeStore(tmp_path / "run")
    stalled = open_run(store)
    report(stalled, tmp_path, {"f": b"1"})
    newer = open_run(store)
    assert names(newer) == ["checkpoint_000001"]
    report(stalled, tmp_path / "stalled", {"f": b"stalled"}, index=2, name="stalled")
    stalled.close()
    report(newer, tmp_path / "newer", {"f": b"2"}, index=2)
    newer.close()
    last = open_run(store)
    assert names(last) == ["checkpoint_000001", "checkpoint_000002"]
    # Its number is used up all the same, so nothing can be taken for its own.
    assert last.first_report == 3
    last.close()


def test_an_epoch_record_says_what_it_adopts_and_which_numbers_are_free(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    committed = report(writer, tmp_path, {"f": b"1"}, index=5)
    writer.close()
    open_run(run).close()
    record = read_json(run / layout.epoch_key(2))
    assert record["adopted"] == [{"name": committed.name, "id": committed.id}]
    assert (record["first_attempt"], record["first_report"]) == (2, 6)


def test_a_run_of_a_newer_format_is_not_written_to(tmp_path) -> None:
    store = open_store(tmp_path)
    store.write(layout.epoch_key(1), msgspec.json.encode(EpochRecord(format_version=2)))
    with pytest.raises(FormatError, match="upgrade"):
        _acquire(store)
    assert current_driver(store) is None


def test_an_unreadable_epoch_record_does_not_lose_the_run(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    report(writer, tmp_path, {"f": b"1"})
    writer.close()
    (run / layout.epoch_key(1)).write_bytes(b"")
    again = open_run(run)
    assert names(again) == ["checkpoint_000001"]
    assert again.epoch == 2
    again.close()


def test_an_epoch_record_that_a_loss_of_power_took_does_not_lose_its_checkpoints(tmp_path) -> None:
    run = tmp_path / "run"
    open_run(run).close()
    writer = open_run(run)
    report(writer, tmp_path, {"f": b"1"})
    writer.close()
    (run / layout.epoch_key(2)).unlink()
    again = open_run(run)
    assert names(again) == ["checkpoint_000001"]
    assert again.epoch == 3
    again.close()
