from __future__ import annotations

import pytest

from holdfast.config import CheckpointConfig
from holdfast.metrics import decode_metrics
from holdfast.persistence import layout, metrics_log
from holdfast.persistence.catalog import load
from holdfast.persistence.lost_lines import lost_lines
from holdfast.persistence.metrics_log import MetricsLog, last_line, read_lines
from holdfast.records import ReportLine
from holdfast.stores import open_store
from holdfast.stores.base import Store
from support.failing_store import WatchedStore
from support.remote_like_store import RemoteLikeStore
from support.runs import names, open_run, report


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path) -> Store:
    return open_store(tmp_path / "run") if request.param == "local" else RemoteLikeStore(tmp_path / "run")


def _lines(store: Store) -> list[ReportLine]:
    return list(read_lines(store, load(store).epochs))


def _reports(store: Store) -> list[int]:
    return [line.report for line in _lines(store)]


def _lose(store: Store) -> dict[str, bytes]:
    """Takes the log away, as if its driver had died before it wrote it; gives what there was."""
    segments = {entry.key: store.read(entry.key) for entry in store.list(layout.METRICS)}
    for key in segments:
        store.delete(key)
    return segments


def _fill(store: Store, tmp_path, num: int) -> None:
    writer = open_run(store)
    for number in range(1, num + 1):
        report(writer, tmp_path, {"f": b"%d" % number}, {"loss": 1 / number})
    writer.close()


def test_the_next_driver_writes_the_lines_that_the_last_one_did_not(store: Store, tmp_path) -> None:
    _fill(store, tmp_path, 2)
    before = _lines(store)
    _lose(store)
    assert _reports(store) == []
    writer = open_run(store)
    report(writer, tmp_path, {"f": b"3"})
    writer.close()
    after = _lines(store)
    assert [line.report for line in after] == [1, 2, 3]
    for was, found in zip(before, after, strict=False):
        assert (found.attempt, found.checkpoint) == (was.attempt, was.checkpoint)
        assert decode_metrics(found.metrics) == decode_metrics(was.metrics)
        assert abs(found.time - was.time) < 60
    assert [line.attempt for line in after] == [1, 1, 2]
    assert last_line(store, load(store).epochs).report == 3


def test_nothing_is_written_where_nothing_is_missing(store: Store, tmp_path) -> None:
    _fill(store, tmp_path, 3)
    before = {entry.key for entry in store.list(layout.METRICS)}
    open_run(store).close()
    assert {entry.key for entry in store.list(layout.METRICS)} == before


def test_a_driver_that_dies_in_the_middle_leaves_the_rest_to_the_next(store: Store, tmp_path) -> None:
    _fill(store, tmp_path, 4)
    _lose(store)
    lines = lost_lines(store, load(store))
    assert len(lines) == 4
    log = MetricsLog(store, 2, 2)
    for line in lines[:2]:
        log.append(line)
    log.close()
    assert lost_lines(store, load(store)) == lines[2:]
    open_run(store).close()
    assert _reports(store) == [1, 2, 3, 4]
    assert lost_lines(store, load(store)) == []


def test_lines_that_a_stalled_driver_writes_after_all_come_once(store: Store, tmp_path) -> None:
    _fill(store, tmp_path, 3)
    late = _lose(store)
    writer = open_run(store)
    report(writer, tmp_path, {"f": b"4"})
    writer.close()
    for key, data in late.items():
        store.write(key, data)
    assert _reports(store) == [1, 2, 3, 4]


def test_metrics_are_those_of_the_report_without_those_of_its_validation(store: Store, tmp_path) -> None:
    writer = open_run(store)
    committed = report(writer, tmp_path, {"f": b"1"}, {"loss": 1.0}, validates=True)
    writer.validations.hold(committed)
    writer.validations.end(committed, "validated", b'{"accuracy":0.5}').result()
    writer.close()
    _lose(store)
    open_run(store).close()
    (line,) = _lines(store)
    assert decode_metrics(line.metrics) == {"loss": 1.0}


def test_no_checkpoint_is_deleted_before_its_line_is_stored(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(metrics_log, "_FLUSH_S", 3600.0)
    plain = RemoteLikeStore(tmp_path / "run")
    stored: list[list[int]] = []

    def before(operation: str, key: str) -> None:
        if operation == "delete_tree" and key == "checkpoint_000001":
            stored.append(_reports(plain))

    writer = open_run(WatchedStore(plain, before), CheckpointConfig(1))
    report(writer, tmp_path, {"f": b"1"})
    assert _reports(plain) == []
    report(writer, tmp_path, {"f": b"2"})
    writer.close()
    assert names(writer) == ["checkpoint_000002"]
    assert stored
    assert stored[0][0] == 1
