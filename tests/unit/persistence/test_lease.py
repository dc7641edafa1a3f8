from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from holdfast.errors import FormatError, RunInUseError, StorageError, StoreExistsError
from holdfast.persistence import heartbeat, layout
from holdfast.persistence.lease import acquire, current_driver
from holdfast.persistence.opening import survey
from holdfast.records import FORMAT_VERSION, EpochRecord
from holdfast.stores import open_store
from support.failing_store import WatchedStore, refuse
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
    held.release()


def _freeze(writer, *, age_s: float = 1000.0) -> None:
    """What a driver on another machine leaves that stopped so long ago: nothing can be told of its process from here."""
    pulse = writer._lease._pulse
    pulse.stop(releases=False)
    heartbeat._ended.discard(pulse._record.nonce)  # this process would know
    beat = msgspec.json.decode(writer.store.read(layout.HEARTBEAT))
    writer.store.write(layout.HEARTBEAT, msgspec.json.encode({**beat, "process": "elsewhere 1 2 3"}))
    path = writer.store._store.local_path(layout.HEARTBEAT)
    os.utime(path, times=(time.time() - age_s,) * 2)


@pytest.fixture
def remote(tmp_path, monkeypatch) -> RemoteLikeStore:
    monkeypatch.setattr(heartbeat, "RENEW_S", 0.05)
    monkeypatch.setattr(heartbeat, "_LOOK_S", 0.05)
    monkeypatch.setattr(heartbeat, "STALE_S", 2.0)
    return RemoteLikeStore(tmp_path / "run")


def test_without_locks_a_second_driver_is_told_too(remote) -> None:
    first = _acquire(remote, "ann on host, process 7")
    with pytest.raises(RunInUseError, match=r"ann on host, process 7, since 2\d{3}-"):
        _acquire(remote, "bob")
    assert (current_driver(remote) or "").startswith("ann on host, process 7, since ")
    first.release()
    first.release()
    assert current_driver(remote) is None
    _acquire(remote, "bob").release()


@pytest.mark.parametrize("refused", ["the first sign of life", "the end"])
def test_a_process_knows_of_the_runs_that_it_has_ended_though_it_could_not_say_so(remote, refused) -> None:
    refusing = refused == "the first sign of life"
    store = WatchedStore(remote, refuse(lambda operation, key: refusing and key == layout.HEARTBEAT))
    if refusing:
        with pytest.raises(StorageError, match="refused by the test"):
            _acquire(store)
    else:
        held = _acquire(store)
        refusing = True
        held.release()
    assert current_driver(remote) is None
    _acquire(remote).release()


def test_a_driver_elsewhere_that_lives_is_seen_to_live(remote, monkeypatch) -> None:
    monkeypatch.setattr(heartbeat, "this_process_id", lambda: "elsewhere 1 2 3")
    first = _acquire(remote)
    monkeypatch.setattr(heartbeat, "this_process_id", lambda: "here 1 2 3")
    monkeypatch.setattr(heartbeat, "STALE_S", 60.0)
    began_s = time.monotonic()
    with pytest.raises(RunInUseError):
        _acquire(remote)
    assert time.monotonic() - began_s < 30
    assert current_driver(remote) is not None
    first.release()


def test_a_driver_elsewhere_that_died_is_waited_for_and_then_replaced(remote, tmp_path) -> None:
    writer = open_run(remote)
    report(writer, tmp_path, {"f": b"1"})
    _freeze(writer, age_s=0)
    began_s = time.monotonic()
    newer = open_run(remote)
    assert 1 < time.monotonic() - began_s < 30
    assert names(newer) == ["checkpoint_000001"]
    newer.close()
    writer.close()


def test_a_driver_elsewhere_that_died_long_ago_is_replaced_at_once(remote, monkeypatch) -> None:
    monkeypatch.setattr(heartbeat, "STALE_S", 60.0)
    stopped = open_run(remote)
    _freeze(stopped)
    began_s = time.monotonic()
    open_run(remote).close()
    assert time.monotonic() - began_s < 30
    stopped.close()


@pytest.mark.parametrize("beats", [True, False], ids=["beating", "before-its-first-beat"])
def test_a_dead_driver_of_this_machine_holds_nothing_without_locks(remote, tmp_path, monkeypatch, beats) -> None:
    child = (
        "import os, sys; from holdfast.persistence import heartbeat; from support.runs import open_run\n"
        "from support.remote_like_store import RemoteLikeStore\n"
        "if len(sys.argv) > 2: heartbeat.Pulse.start = lambda self: os._exit(9)\n"
        "open_run(RemoteLikeStore(sys.argv[1])); os._exit(9)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", child, str(tmp_path / "run"), *([] if beats else ["dies"])]
    assert subprocess.run(command, env=environment).returncode == 9
    monkeypatch.setattr(heartbeat, "STALE_S", 600.0)
    writer = open_run(remote)
    assert writer.epoch == 2
    writer.close()


def test_a_replaced_driver_finds_out_and_deletes_nothing_of_the_new_ones(remote, tmp_path) -> None:
    stalled = open_run(remote)
    report(stalled, tmp_path, {"f": b"1"})
    unfinished = stalled.begin_checkpoint("checkpoint_000002", 2)
    _freeze(stalled)
    newer = open_run(remote)
    report(newer, tmp_path / "newer", {"f": b"2"}, index=2)
    unfinished._in_place, unfinished._place = (
        False,
        "checkpoint_000002",
    )  # its files were on their way to that very place
    unfinished.abort()
    with pytest.raises(RunInUseError, match="taken over by"):
        report(stalled, tmp_path / "stalled", {"f": b"3"}, index=3)
    stalled.close()
    assert current_driver(remote) is not None  # the end of the old one is not taken for the new one's
    newer.close()
    last = open_run(remote)
    assert names(last) == ["checkpoint_000001", "checkpoint_000002"]
    last.close()


def test_whatever_a_replaced_driver_still_writes_is_void(tmp_path) -> None:
    store = RemoteLikeStore(tmp_path / "run")
    stalled = open_run(store)
    report(stalled, tmp_path, {"f": b"1"})
    _freeze(stalled)
    newer = open_run(store)
    assert names(newer) == ["checkpoint_000001"]
    # It was stopped between its look for another driver and its write.
    stalled._lease.check = lambda: None
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
    store.write(layout.epoch_key(1), msgspec.json.encode(EpochRecord(format_version=FORMAT_VERSION + 1)))
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
