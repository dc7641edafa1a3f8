from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from holdfast.config import CheckpointConfig
from holdfast.errors import (
    CheckpointExistsError,
    ConfigurationError,
    EmptyCheckpointError,
    ReportError,
    ShardCollisionError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
)
from holdfast.persistence import layout
from holdfast.persistence import writer as writer_module
from holdfast.persistence.catalog import load
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.metrics_log import read_lines
from holdfast.persistence.staging import stage
from holdfast.persistence.staging_places import StagingPlaces
from holdfast.persistence.verify import find_damage
from holdfast.run import Run
from holdfast.stores import open_store
from holdfast.stores.base import Store
from support.failing_store import WatchedStore, refuse
from support.remote_like_store import RemoteLikeStore
from support.runs import hidden, names, open_run, read_json, report, visible, write_files
from support.waiting import wait_until


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path) -> Store:
    return open_store(tmp_path / "run") if request.param == "local" else RemoteLikeStore(tmp_path / "run")


def test_ranks_come_together_in_one_directory(store: Store, tmp_path) -> None:
    writer = open_run(store)
    committed = report(writer, tmp_path, [{"a": b"0", "same": b"s"}, {"sub/b": b"1", "same": b"s"}], {"loss": 2})
    manifest = read_manifest(writer.store_of(committed.name))
    assert manifest is not None
    assert [(file.path, file.rank) for file in manifest.files] == [("a", 0), ("same", 0), ("sub/b", 1)]
    assert (manifest.world_size, manifest.report_index, manifest.epoch, manifest.attempt) == (2, 1, 1, 1)
    assert writer.latest_valid() == writer.checkpoints()[0]
    writer.close()


def test_opening_again_goes_on_counting(store: Store, tmp_path) -> None:
    first = open_run(store)
    report(first, tmp_path, {"f": b"1"})
    first.log_report(report=9, checkpoint=None, metrics=b"{}", other_ranks=None)
    run_id = first.run_id
    first.close()
    first.close()
    second = open_run(store)
    assert (second.epoch, second.first_attempt, second.first_report, second.run_id) == (2, 2, 10, run_id)
    second.close()
    third = open_run(store)
    assert (third.epoch, third.first_report) == (3, 10)
    third.close()


def test_a_log_line_is_there_when_the_call_returns(tmp_path) -> None:
    store = open_store(tmp_path / "run")
    writer = open_run(store)
    writer.log_report(report=1, checkpoint=None, metrics=b'{"a":1}', other_ranks=[b'{"a":2}'])
    assert [line.report for line in read_lines(store, {})] == [1]
    writer.begin_attempt(2)
    writer.log_report(report=2, checkpoint="c", metrics=b"{}", other_ranks=None)
    assert [(line.report, line.attempt) for line in read_lines(store, {})] == [(1, 1), (2, 2)]
    writer.close()


def test_a_taken_name_is_refused_before_anything_is_stored(store: Store, tmp_path) -> None:
    writer = open_run(store)
    report(writer, tmp_path, {"f": b"1"}, name="c")
    with pytest.raises(CheckpointExistsError, match="'c'"):
        report(writer, tmp_path, {"f": b"2"}, name="c")
    store.write("mine/notes", b"")
    with pytest.raises(CheckpointExistsError, match="'mine'"):
        report(writer, tmp_path, {"f": b"2"}, name="mine")
    writer.close()
    assert store.read("c/f") == b"1"
    assert store.read("mine/notes") == b""


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "x\n"])
def test_a_name_that_is_no_directory_name_is_refused(tmp_path, name: str) -> None:
    writer = open_run(tmp_path / "run")
    with pytest.raises(ConfigurationError):
        writer.begin_checkpoint(name, 1)
    writer.close()


def test_failed_checkpoints_leave_nothing(store: Store, tmp_path) -> None:
    writer = open_run(store)
    with pytest.raises(ShardCollisionError, match=r"ranks 0 and 1.*'f'"):
        report(writer, tmp_path, [{"f": b"1"}, {"f": b"2"}])
    with pytest.raises(EmptyCheckpointError):
        report(writer, tmp_path, {}, index=2)
    assert names(writer) == []
    writer.close()
    assert [entry.key for entry in store.list() if entry.key != layout.PRIVATE] == []
    assert list(store.list(layout.PENDING)) == []


def test_metadata_alone_makes_a_checkpoint(store: Store, tmp_path) -> None:
    writer = open_run(store)
    committed = report(writer, tmp_path, {layout.METADATA: b'{"a":1}'})
    assert committed.num_files == 0
    assert store.read(layout.metadata_key(committed.name)) == b'{"a":1}'
    writer.close()


def test_an_abort_that_the_disk_refuses_is_made_up_for_at_the_end(tmp_path, caplog) -> None:
    full = [True]
    run = tmp_path / "run"
    watch = refuse(lambda op, key: full[0] and (op == "delete_tree" or (op == "write" and ".partial-" in key)))
    writer = open_run(WatchedStore(open_store(run), watch))
    with pytest.raises(StorageError):
        report(writer, tmp_path, {"f": b"1"})
    assert hidden(run) == [".checkpoint_000001.partial-1.1"]
    full[0] = False
    writer.close()
    assert hidden(run) == []


def test_the_same_name_may_be_tried_again_after_a_refused_abort(tmp_path) -> None:
    full = [True]
    watch = refuse(lambda op, key: full[0] and (op == "delete_tree" or (op == "write" and ".partial-" in key)))
    writer = open_run(WatchedStore(open_store(tmp_path / "run"), watch))
    with pytest.raises(StorageError):
        report(writer, tmp_path, {"f": b"1", "old": b"x"})
    full[0] = False
    assert report(writer, tmp_path / "again", {"f": b"2"}).num_files == 1
    writer.close()


@pytest.mark.parametrize("operation", ["rename", "write", "append"])
def test_a_failure_that_passes_by_itself_fails_no_report(tmp_path, operation: str) -> None:
    failing = [3]

    def before(what: str, key: str) -> None:
        if what == operation and failing[0]:
            failing[0] -= 1
            raise StorageError("the mount does not answer") from OSError(errno.ESTALE, "Stale file handle")

    writer = open_run(WatchedStore(open_store(tmp_path / "run"), before))
    failing[0] = 3
    report(writer, tmp_path, {"f": b"1"})
    writer.log_report(report=1, checkpoint=None, metrics=b"{}", other_ranks=None)
    assert failing[0] == 0
    assert names(writer) == ["checkpoint_000001"]
    writer.close()


def test_files_in_place_are_registered_and_an_abort_leaves_them(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    write_files(run / "mine", {"f": b"1"})
    given_up = writer.begin_checkpoint("mine", 1)
    given_up.register_shard(stage(run / "mine", 0))
    assert given_up.look_at_registered().result().rank == 0
    given_up.abort()
    assert visible(run) == ["mine"]
    checkpoint = writer.begin_checkpoint("mine", 2)
    checkpoint.register_shard(stage(run / "mine", 1))
    checkpoint.register_shard(stage(run / "mine", 0))
    receipt = checkpoint.look_at_registered().result()
    assert receipt.rank == 0
    with pytest.raises(ReportError, match="NO_UPLOAD"):
        checkpoint.store_shard(stage(run / "mine", 1))
    committed = checkpoint.commit([receipt], metrics=b"{}", world_size=1, attempt=1)
    assert names(writer) == ["mine"]
    assert writer.latest_valid().id == committed.id
    writer.close()
    with pytest.raises(ReportError, match="given up"):
        given_up.commit([receipt], metrics=b"{}", world_size=1, attempt=1)


def test_an_adopted_directory_is_taken_and_released(tmp_path) -> None:
    writer = open_run(tmp_path / "run")
    committed = report(writer, tmp_path / "source", {"f": b"x" * 100_000}, adopt=True)
    assert list((tmp_path / "source").iterdir()) == []
    assert writer.latest_valid() == writer.checkpoints()[0]
    assert committed.size_bytes == 100_000
    writer.close()


def _damage(run, name: str, how: str) -> None:
    file = run / name / "f"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "altered":
        file.write_bytes(b"X" + file.read_bytes()[1:])
    elif how == "missing":
        file.unlink()
    elif how == "manifest":
        (run / name / layout.MANIFEST).write_bytes(b"{}x")


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "manifest"])
@pytest.mark.parametrize("reopen", [True, False])
def test_a_damaged_newest_is_skipped_for_the_newest_valid_one_and_the_user_is_told(
    tmp_path, caplog, how, reopen
) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    for number in (1, 2, 3):
        report(writer, tmp_path, {"f": b"%d" % number * 50})
    if reopen:
        writer.close()
    _damage(run, "checkpoint_000003", how)
    _damage(run, "checkpoint_000002", how)
    if reopen:
        writer = open_run(run)
    found = writer.latest_valid()
    assert found is not None
    assert found.name == "checkpoint_000001"
    assert "checkpoint_000003" in caplog.text
    if how != "manifest":
        assert "'f'" in caplog.text
        assert "going on from checkpoint_000001" in caplog.text
    assert names(writer) == ["checkpoint_000001"]
    assert writer.latest_valid() == found
    writer.close()
    assert [each.name for each in load(writer.store).checkpoints] == ["checkpoint_000001"]


def test_damage_while_the_disk_still_says_durable_is_found(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    report(writer, tmp_path, {"f": b"1"})
    report(writer, tmp_path, {"f": b"2"})
    writer.close()
    assert load(writer.store).checkpoints[1].durable
    _damage(run, "checkpoint_000002", "altered")
    again = open_run(run)
    assert again.latest_valid().name == "checkpoint_000001"
    again.close()


def test_one_old_checkpoint_missing_does_not_refuse_to_resume(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    for number in (1, 2, 3):
        report(writer, tmp_path, {"f": b"%d" % number})
    writer.close()
    open_store(run).delete_tree("checkpoint_000001")
    again = open_run(run)
    assert again.latest_valid().name == "checkpoint_000003"
    open_store(run).delete_tree("checkpoint_000003")
    assert again.latest_valid().name == "checkpoint_000002"
    again.close()


def test_nothing_valid_is_said_and_training_begins_anew(tmp_path, caplog) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    assert writer.latest_valid() is None
    assert not caplog.records
    report(writer, tmp_path, {"f": b"1"})
    _damage(run, "checkpoint_000001", "missing")
    assert writer.latest_valid() is None
    assert "from the beginning" in caplog.text
    writer.close()


def test_a_damaged_newest_brings_back_what_was_to_make_room_for_it(tmp_path) -> None:
    hold = threading.Event()

    def before(operation: str, key: str) -> None:
        if operation == "sync" and key.startswith("checkpoint"):
            assert hold.wait(20)

    run = tmp_path / "run"
    writer = open_run(WatchedStore(open_store(run), before), CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    report(writer, tmp_path, {"f": b"2"})
    assert names(writer) == ["checkpoint_000002"]
    _damage(run, "checkpoint_000002", "truncated")
    assert writer.latest_valid().name == "checkpoint_000001"
    hold.set()
    writer.close()
    assert "checkpoint_000001" in visible(run)


def test_the_name_of_a_damaged_checkpoint_can_be_used_again(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run)
    report(writer, tmp_path, {"f": b"1"}, name="c")
    _damage(run, "c", "truncated")
    assert writer.latest_valid() is None
    report(writer, tmp_path, {"f": b"2"}, name="c", index=2)
    assert names(writer) == ["c"]
    assert writer.latest_valid() is not None
    writer.close()
    assert [name.startswith(".c.damaged-") for name in hidden(run)] == [True]
    again = open_run(run)
    assert again.latest_valid().report_index == 2
    again.close()


def test_a_restart_does_not_read_again_what_stat_proves_untouched(tmp_path, monkeypatch) -> None:
    from holdfast.persistence import verify

    writer = open_run(tmp_path / "run")
    report(writer, tmp_path, {"f": b"1"})
    asked: list[bool] = []
    real = verify.find_damage
    monkeypatch.setattr(
        verify, "find_damage", lambda *args, digests=True: (asked.append(digests), real(*args, digests=digests))[1]
    )
    assert writer.latest_valid() is not None
    writer.close()
    again = open_run(tmp_path / "run")
    assert again.latest_valid() is not None
    again.close()
    # Names and sizes first, at every time.
    assert asked == [False, False, True]


def test_commits_happen_in_the_order_of_the_calls(tmp_path) -> None:
    writer = open_run(tmp_path / "run")
    done: list[int] = []
    futures = [writer.submit(done.append, number) for number in range(50)]
    for future in futures:
        future.result()
    assert done == list(range(50))
    writer.close()


def test_the_configuration_of_the_newest_driver_is_on_record(tmp_path) -> None:
    run = tmp_path / "run"
    open_run(run, CheckpointConfig(2, "loss", "min"), configuration={"lr": "0.1"}).close()
    open_run(run, CheckpointConfig(3)).close()
    assert read_json(run / layout.RUN_RECORD)["configuration"]["checkpoint_config.checkpoint_score_attribute"] == "loss"
    assert read_json(run / layout.epoch_key(2))["configuration"]["checkpoint_config.num_to_keep"] == "3"


def test_an_unreadable_run_record_is_written_anew(tmp_path) -> None:
    run = tmp_path / "run"
    open_run(run).close()
    (run / layout.RUN_RECORD).write_bytes(b"")
    writer = open_run(run)
    assert read_json(run / layout.RUN_RECORD)["id"] == writer.run_id
    writer.close()


def test_no_thread_is_left_behind(tmp_path) -> None:
    before = set(threading.enumerate())
    writer = open_run(tmp_path / "run", CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    writer.close()
    assert set(threading.enumerate()) <= before


def test_a_driver_that_fails_as_it_begins_leaves_no_thread_and_the_run_free(tmp_path, monkeypatch) -> None:
    before = set(threading.enumerate())
    writer = open_run(tmp_path / "run")
    report(writer, tmp_path, {"f": b"1"})
    writer.close()

    def away(*_):
        raise StorageUnavailableError("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr("holdfast.persistence.writer.lost_lines", away)
        with pytest.raises(StorageUnavailableError):
            open_run(tmp_path / "run")
    wait_until(lambda: set(threading.enumerate()) <= before, "what it had begun has ended")
    writer = open_run(tmp_path / "run")
    assert len(writer.checkpoints()) == 1
    writer.close()


def test_a_line_that_could_not_be_written_is_written_before_the_next(tmp_path, monkeypatch) -> None:
    writer = open_run(tmp_path / "run")

    def full(line):
        raise StorageAccessError("nothing may be written there for a moment")

    with monkeypatch.context() as patched:
        patched.setattr(writer._lines._log, "append", full)
        for report, is_committed in ((1, True), (2, False)):
            with pytest.raises(StorageAccessError):
                writer.log_report(
                    report=report, checkpoint=None, metrics=b"{}", other_ranks=None, is_committed=is_committed
                )
    writer.log_report(report=3, checkpoint=None, metrics=b"{}", other_ranks=None)
    writer.close()
    # Report 2 has not been made: it failed, and there is no checkpoint of it.
    assert [line["report"] for line in Run(tmp_path / "run").reports()] == [1, 3]


def test_the_three_thousandth_kept_checkpoint_costs_what_the_tenth_did(tmp_path) -> None:
    writer = open_run(tmp_path / "run")
    write_files(tmp_path / "source", {"f": b"x" * 1024})
    spans = []
    for index in range(1, 1201):
        shard = stage(tmp_path / "source", 0)
        checkpoint = writer.begin_checkpoint(layout.checkpoint_name(index), index)
        receipt = checkpoint.store_shard(shard).result()
        began = time.thread_time()
        checkpoint.commit([receipt], metrics=b"{}", world_size=1, attempt=1)
        writer.log_report(report=index, checkpoint=checkpoint.name, metrics=b"{}", other_ranks=None)
        spans.append(time.thread_time() - began)
    writer.close()
    # The quickest of each, which no other process's load has slowed.
    assert min(spans[-100:]) < 3 * min(spans[:100])


@pytest.mark.parametrize("left", [b"", b"\0" * 50])
def test_bytes_that_a_loss_of_power_took_before_they_were_flushed_are_detected(tmp_path, left: bytes) -> None:
    run = tmp_path / "run"
    never = refuse(lambda operation, key: operation == "sync" and key == "checkpoint_000002")
    writer = open_run(WatchedStore(open_store(run), never))
    report(writer, tmp_path, {"f": b"1" * 50})
    report(writer, tmp_path, {"f": b"2" * 50})
    writer.close()
    assert [each.durable for each in load(writer.store).checkpoints] == [True, False]
    (run / "checkpoint_000002" / "f").write_bytes(left)
    again = open_run(run)
    assert again.latest_valid().name == "checkpoint_000001"
    again.close()


def test_a_reader_sees_a_whole_checkpoint_or_none_while_one_is_written(store: Store, tmp_path) -> None:
    writer = open_run(store)
    done = threading.Event()
    seen: list[str] = []
    wrong: list[object] = []

    def read() -> None:
        while not done.is_set():
            for checkpoint in load(store).checkpoints:
                manifest = read_manifest(store.child(checkpoint.name))
                wrong.extend([checkpoint.name] if manifest is None else find_damage(store, checkpoint.name, manifest))
                seen.append(checkpoint.name)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(30):
            report(writer, tmp_path, [{"a": b"%d" % number, "b/c": b"x" * 5000}, {"d": b""}])
            if number == 0:
                wait_until(lambda: seen, "the reader has begun")
    finally:
        done.set()
        reader.join()
    writer.close()
    assert not wrong


def test_whatever_fails_at_the_end_the_run_and_its_places_are_free(tmp_path, monkeypatch) -> None:
    store = RemoteLikeStore(tmp_path / "run")
    writer = open_run(store)
    assert all(os.path.exists(f"{place}.lock") for place in writer.staging.paths)
    monkeypatch.setattr(writer.keeper, "close", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.close()
    assert not any(os.path.exists(f"{place}.lock") for place in writer.staging.paths)
    open_run(store).close()


def test_a_run_that_cannot_be_opened_holds_nothing(tmp_path, monkeypatch) -> None:
    store = RemoteLikeStore(tmp_path / "run")
    taken, take = [], StagingPlaces.take

    def watched(places: StagingPlaces) -> None:
        take(places)
        taken.extend(places.paths)
        assert all(os.path.exists(f"{place}.lock") for place in taken)

    with monkeypatch.context() as patch:
        patch.setattr(StagingPlaces, "take", watched)
        patch.setattr(writer_module, "NoteKeeper", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_run(store)
    assert taken
    assert not any(os.path.exists(f"{place}.lock") for place in taken)
    open_run(store).close()
