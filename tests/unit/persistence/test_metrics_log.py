from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import pytest

from holdfast.errors import StorageError, StorageUnavailableError, StoreExistsError
from holdfast.metrics import decode_metrics
from holdfast.persistence import layout, segments
from holdfast.persistence.metrics_log import (
    MetricsLog,
    encode_line,
    highest_attempt,
    highest_report,
    last_line,
    read_lines,
)
from holdfast.records import EpochRecord
from holdfast.stores import open_store
from holdfast.stores.base import Store, StoreEntry
from support.failing_store import WatchedStore, refuse
from support.remote_like_store import RemoteLikeStore


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path) -> Store:
    return open_store(tmp_path) if request.param == "local" else RemoteLikeStore(tmp_path)


def _line(report: int, attempt: int = 1, metrics: bytes = b'{"loss":1}', **fields) -> bytes:
    return encode_line(report, attempt, 12.5, fields.get("checkpoint"), metrics, fields.get("other_ranks"))


def _fill(store: Store, reports: range, epoch: int = 1, attempt: int = 1, **options) -> None:
    log = MetricsLog(store, epoch, attempt, **options)
    for report in reports:
        log.append(_line(report, attempt))
    log.close()


def _reports(store: Store, epochs: dict[int, EpochRecord] | None = None) -> list[int]:
    return [line.report for line in read_lines(store, epochs or {})]


def test_what_is_appended_is_what_is_read(store: Store) -> None:
    log = MetricsLog(store, 1, 3)
    log.append(_line(1, 3, b'{"a":{"b":[1,null]}}', checkpoint='we"ird', other_ranks=[b'{"a":1}', b"{}"]))
    log.close()
    (line,) = read_lines(store, {})
    assert (line.report, line.attempt, line.time, line.checkpoint) == (1, 3, 12.5, 'we"ird')
    assert decode_metrics(line.metrics) == {"a": {"b": [1, None]}}
    assert line.other_ranks is not None
    assert [decode_metrics(each) for each in line.other_ranks] == [{"a": 1}, {}]


def test_a_line_survives_the_death_of_the_process_without_a_close(tmp_path) -> None:
    store = open_store(tmp_path)
    log = MetricsLog(store, 1, 1)
    log.append(_line(1))
    assert _reports(store) == [1]
    log.close()


def test_segments_roll_and_read_as_one(store: Store) -> None:
    _fill(store, range(1, 200), segment_bytes=300)
    assert _reports(store) == list(range(1, 200))
    assert last_line(store, {}).report == 199
    assert highest_report(store) == 199


def test_attempts_and_drivers_read_in_order(store: Store) -> None:
    _fill(store, range(5, 7), epoch=2, attempt=2)
    _fill(store, range(1, 3))
    _fill(store, range(3, 5), attempt=10)
    assert _reports(store) == [1, 2, 3, 4, 5, 6]
    assert highest_attempt(store) == 10


def test_a_torn_last_line_is_skipped(store: Store) -> None:
    _fill(store, range(1, 3))
    key = layout.segment_key(1, 1, 1)
    store.write(key, store.read(key) + _line(3)[:20])
    _fill(store, range(4, 5), attempt=2)
    assert _reports(store) == [1, 2, 4]
    assert last_line(store, {}).report == 4
    store.delete(layout.segment_key(1, 2, 1))
    assert last_line(store, {}).report == 2
    assert highest_report(store) == 2


def test_zeros_after_a_loss_of_power_are_skipped(store: Store) -> None:
    _fill(store, range(1, 3))
    key = layout.segment_key(1, 1, 1)
    store.write(key, store.read(key) + b"\0" * 4096)
    assert _reports(store) == [1, 2]
    assert highest_report(store) == 2


def test_what_a_replaced_driver_wrote_after_its_time_is_void(store: Store) -> None:
    epochs = {1: EpochRecord(epoch=1), 2: EpochRecord(epoch=2, first_attempt=3, first_report=10)}
    _fill(store, range(1, 4), attempt=1)
    _fill(store, range(4, 13), attempt=2)  # 10 and above came after the takeover
    _fill(store, range(7, 9), attempt=3)  # a whole attempt after it
    _fill(store, range(10, 12), epoch=2, attempt=3)
    assert _reports(store, epochs) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert highest_report(store) == 12


def test_a_line_longer_than_the_tail_is_found(store: Store) -> None:
    log = MetricsLog(store, 1, 1)
    log.append(_line(1))
    log.append(_line(2, metrics=b'{"a":"' + b"x" * 200_000 + b'"}'))
    log.close()
    assert last_line(store, {}).report == 2


def test_an_empty_log_has_nothing(store: Store) -> None:
    assert _reports(store) == []
    assert last_line(store, {}) is None
    assert (highest_attempt(store), highest_report(store)) == (0, 0)


def test_without_append_lines_wait_for_a_flush_and_are_never_lost_by_a_failed_one(tmp_path) -> None:
    refusing = [True]
    store = WatchedStore(RemoteLikeStore(tmp_path), refuse(lambda operation, _: refusing[0] and operation == "create"))
    log = MetricsLog(store, 1, 1)
    log.append(_line(1))
    with pytest.raises(StorageError):
        log.flush()
    refusing[0] = False
    log.append(_line(2))
    log.flush()
    assert _reports(store) == [1, 2]
    log.close()
    assert _reports(store) == [1, 2]


class _LosesAnswers(RemoteLikeStore):
    """Creates what it is asked to, and says that it failed."""

    losing = True

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        if self.losing:
            raise StorageUnavailableError("the answer was lost")


def test_lines_whose_flush_lost_its_answer_are_there_once(tmp_path) -> None:
    store = _LosesAnswers(tmp_path)
    log = MetricsLog(store, 1, 1)
    for report in (1, 2):
        log.append(_line(report))
        with pytest.raises(StorageError):
            log.flush()
    store.losing = False
    log.append(_line(3))
    log.close()
    assert _reports(store) == [1, 2, 3]


def test_anothers_segment_is_never_taken_for_ours(tmp_path) -> None:
    store = RemoteLikeStore(tmp_path)
    store.create(layout.segment_key(1, 1, 1), _line(7))
    log = MetricsLog(store, 1, 1)
    log.append(_line(1))
    with pytest.raises(StoreExistsError):
        log.flush()


def test_a_store_that_does_not_answer_holds_up_no_report(tmp_path) -> None:
    asked, answers = threading.Event(), threading.Event()

    class Stalling(RemoteLikeStore):
        def create(self, key: str, data: bytes) -> None:
            asked.set()
            assert answers.wait(30)
            super().create(key, data)

    store = Stalling(tmp_path)
    log = MetricsLog(store, 1, 1)
    log.append(_line(1))
    flush = threading.Thread(target=log.flush)
    flush.start()
    assert asked.wait(30)
    log.append(_line(2))  # would wait for the answer
    answers.set()
    flush.join()
    log.close()
    assert _reports(store) == [1, 2]


class _Merging(RemoteLikeStore):
    """Counts its objects; calls back before the reading of one."""

    before_read: Callable[[str], None] = staticmethod(lambda key: None)

    def read(self, key: str) -> bytes:
        self.before_read(key)
        return super().read(key)

    def open_read(self, key: str) -> BinaryIO:
        self.before_read(key)
        return super().open_read(key)

    def num_segments(self) -> int:
        return len(list(self.list(layout.METRICS)))


def _flush_each(log: MetricsLog, reports: Iterable[int], metrics: bytes = b"{}") -> None:
    for report in reports:
        log.append(_line(report, metrics=metrics))
        log.flush()


def test_a_segment_a_second_does_not_become_an_object_a_second(tmp_path) -> None:
    store = _Merging(tmp_path)
    _flush_each(MetricsLog(store, 1, 1), range(1, 601))
    assert store.num_segments() <= 60
    assert _reports(store) == list(range(1, 601))
    assert last_line(store, {}).report == highest_report(store) == 600


def test_segments_of_some_size_are_not_merged_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(segments, "_MERGED_AT_ONCE", 3)
    store = _Merging(tmp_path)
    _flush_each(MetricsLog(store, 1, 1), range(1, 11), b'{"a":"%b"}' % (b"x" * 100_000))
    assert _reports(store) == list(range(1, 11))
    sizes = [entry.size_bytes for entry in store.list(layout.METRICS)]
    assert len(sizes) == 4
    assert max(sizes) < 400_000
    large = _Merging(tmp_path / "large")
    _flush_each(MetricsLog(large, 1, 1), range(1, 4), b'{"a":"%b"}' % (b"x" * 5_000_000))
    assert large.num_segments() == 3
    assert _reports(large) == [1, 2, 3]


def test_many_bytes_are_merged_before_they_take_much_memory(tmp_path) -> None:
    store = _Merging(tmp_path)
    _flush_each(MetricsLog(store, 1, 1), range(1, 21), b'{"a":"%b"}' % (b"x" * 1_000_000))
    assert _reports(store) == list(range(1, 21))
    assert store.num_segments() == 4


@pytest.mark.parametrize("operation", ["create", "delete"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_merge_that_fails_or_whose_answer_is_lost_changes_nothing(tmp_path, monkeypatch, operation, is_done) -> None:
    monkeypatch.setattr(segments, "_MERGED_AT_ONCE", 4)
    failing = [False]

    class Failing(_Merging):
        def create(self, key: str, data: bytes) -> None:
            self._maybe("create", data.count(b"\n") > 1, lambda: super(Failing, self).create(key, data))

        def delete(self, key: str) -> None:
            self._maybe("delete", True, lambda: super(Failing, self).delete(key))

        def _maybe(self, what: str, is_meant: bool, do: Callable[[], None]) -> None:
            fails = failing[0] and what == operation and is_meant
            if is_done or not fails:
                do()
            if fails:
                raise StorageUnavailableError("no answer")

    store = Failing(tmp_path)
    log = MetricsLog(store, 1, 1)
    failing[0] = True
    _flush_each(log, range(1, 10))
    assert _reports(store) == list(range(1, 10))
    failing[0] = False
    _flush_each(log, range(10, 20))
    assert _reports(store) == list(range(1, 20))
    assert last_line(store, {}).report == highest_report(store) == 19


def test_what_is_merged_while_it_is_read_comes_once_and_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(segments, "_MERGED_AT_ONCE", 10)
    for look in (_reports, lambda store: [last_line(store, {}).report], lambda store: [highest_report(store)]):
        for behind in range(9):
            store = _Merging(tmp_path / f"{id(look)}-{behind}")
            log = MetricsLog(store, 1, 1)
            _flush_each(log, range(1, 10))
            waits = iter([*range(behind), None])

            def merge_then(key: str, log: MetricsLog = log, waits: Iterator[int | None] = waits) -> None:
                if next(waits, 0) is None:
                    _flush_each(log, [10])

            store.before_read = merge_then
            found = look(store)
            store.before_read = lambda key: None
            assert found[-1] in (9, 10)
            assert found in (list(range(1, found[-1] + 1)), [found[-1]])
            assert _reports(store)[:9] == list(range(1, 10))


def test_a_segment_that_is_listed_and_never_there_holds_nobody(tmp_path) -> None:
    class Ghostly(RemoteLikeStore):
        def list(self, key: str = "", *, recursive: bool = False) -> Iterator[StoreEntry]:
            yield from super().list(key, recursive=recursive)
            yield StoreEntry(layout.segment_key(1, 1, 9), 1, is_directory=False, mtime_s=0.0)

    store = Ghostly(tmp_path)
    _fill(store, range(1, 4))
    assert _reports(store) == [1, 2, 3]
    assert last_line(store, {}).report == highest_report(store) == 3
