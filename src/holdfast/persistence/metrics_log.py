"""The metrics log: one line for every report of a run, appended, never rewritten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from holdfast.errors import StorageError, StoreExistsError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.reads import read_many
from holdfast.records import EpochRecord, ReportLine
from holdfast.stores.base import AppendHandle, Store

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("holdfast")
_SEGMENT_BYTES = 64 << 20
_FLUSH_S = 1.0
# Enough for the last line of nearly any log; a longer one costs a second, larger read.
_TAIL_BYTES = 64 << 10

_encode_text = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(ReportLine)


def encode_line(
    report: int, attempt: int, time: float, checkpoint: str | None, metrics: bytes, other_ranks: list[bytes] | None
) -> bytes:
    """One line of the log; metrics are stored JSON already and go in as they are.

    Args:
        time: Seconds since the Unix epoch.
        other_ranks: Ranks 1, 2, … where one of them reported other metrics than rank 0.
    """
    name = b"null" if checkpoint is None else _encode_text(checkpoint)
    if other_ranks is None:
        return b'{"report":%d,"attempt":%d,"time":%.6f,"checkpoint":%b,"metrics":%b}\n' % (
            report,
            attempt,
            time,
            name,
            metrics,
        )
    return b'{"report":%d,"attempt":%d,"time":%.6f,"checkpoint":%b,"metrics":%b,"other_ranks":[%b]}\n' % (
        report,
        attempt,
        time,
        name,
        metrics,
        b",".join(other_ranks),
    )


class MetricsLog:
    """The open end of the log, for one attempt of one driver. Safe for threads.

    A store that can append takes each line at once; when `append` returns, the line survives the death of this
    process. On others lines wait in memory for at most a second, and go out together as a segment of their own.
    """

    def __init__(self, store: Store, epoch: int, attempt: int, *, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._store = store
        self._epoch = epoch
        self._attempt = attempt
        self._segment_bytes = segment_bytes
        self._segment = 0
        self._size_bytes = 0
        self._handle: AppendHandle | None = None
        self._waiting: list[bytes] = []
        self._timer: threading.Timer | None = None
        self._appends = store.capabilities.append
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def append(self, line: bytes) -> None:
        """Adds one line, which ends in a newline.

        If the process dies inside, the line is there, or torn, or absent; readers skip a torn one.
        """
        with self._lock:
            if not self._appends:
                self._waiting.append(line)
                if self._timer is None:
                    self._timer = threading.Timer(_FLUSH_S, self._flush_behind)
                    self._timer.daemon = True
                    self._timer.start()
                return
            if self._handle is None:
                self._segment += 1
                self._handle = self._store.open_append(self._key())
            self._handle.write(line)
            self._size_bytes += len(line)
            if self._size_bytes >= self._segment_bytes:
                self._end_segment()

    def flush(self) -> None:
        """Writes what waits in memory, where the store cannot append; else there is nothing to do."""
        # Not under the lock that `append` takes: while a network does not answer, reports go on.
        with self._flushing:
            while True:
                with self._lock:
                    num_lines = len(self._waiting)
                    data = b"".join(self._waiting)
                if not data:
                    return
                self._segment += 1
                try:
                    stored_bytes = self._create_segment(data)
                except StorageError:
                    # Its number is tried again: an answer may have been lost, and the lines must not be there twice.
                    self._segment -= 1
                    raise
                with self._lock:
                    left = [data[stored_bytes:]] if stored_bytes < len(data) else []
                    self._waiting[:num_lines] = left

    def _create_segment(self, data: bytes) -> int:
        """How many bytes of the data are in the segment now: all, or those of an earlier try whose answer was lost."""
        try:
            # Dying on the next line loses nothing: the segment is whole and will be read.
            self._store.create(self._key(), data)
        except StoreExistsError:
            found = self._store.read(self._key())
            # A driver that counts as we do, and is still alive, has other lines.
            if not found or not data.startswith(found):
                raise
            return len(found)
        return len(data)

    def close(self) -> None:
        """Ends the attempt's log, on disk where the store can say so; safe to repeat."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self.flush()
        with self._lock:
            self._end_segment()

    def _flush_behind(self) -> None:
        with self._lock:
            self._timer = None
        try:
            self.flush()
        except StorageError as error:
            # They are still in memory: the next report's flush takes them along, and `close` raises if none can.
            _log.warning("reports could not be written yet and wait in memory: %s", error)

    def _end_segment(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None
            self._size_bytes = 0
            try:
                self._store.sync(layout.METRICS, [self._key()])
            except StorageError as error:
                # The lines are written and readable; only a loss of power could still take them.
                _log.warning("the last reports could not be flushed to disk: %s", error)

    def _key(self) -> str:
        return layout.segment_key(self._epoch, self._attempt, self._segment)


def read_lines(store: Store, epochs: Mapping[int, EpochRecord]) -> Iterator[ReportLine]:
    """Every report of a run, across drivers and attempts, in the order in which they were made.

    Args:
        epochs: The run's epoch records: they tell what a replaced driver wrote after its time.
    """
    valid: list[tuple[str, float]] = []
    for epoch, attempt, segment in _segments(store):
        first_attempt, first_report = _limits(epoch, epochs)
        if attempt < first_attempt:
            valid.append((layout.segment_key(epoch, attempt, segment), first_report))

    def read(wanted: tuple[str, float]) -> bytes:
        try:
            return store.read(wanted[0])
        except StoreNotFoundError:
            return b""

    # A store that cannot append has a segment for each second of training.
    for (key, first_report), data in zip(valid, read_many(store, read, valid), strict=True):
        for line in _decode_lines(data, f"{store.url}/{key}"):
            if line.report < first_report:
                yield line


def last_line(store: Store, epochs: Mapping[int, EpochRecord]) -> ReportLine | None:
    """The newest report of a run, without reading what lies before it."""
    for epoch, attempt, segment in reversed(_segments(store)):
        first_attempt, first_report = _limits(epoch, epochs)
        if attempt >= first_attempt:
            continue
        for line in reversed(_tail(store, layout.segment_key(epoch, attempt, segment))):
            if line.report < first_report:
                return line
    return None


def highest_attempt(store: Store) -> int:
    """The highest attempt that has a log, void ones too; 0 where there is none."""
    return max((attempt for _, attempt, _ in _segments(store)), default=0)


def highest_report(store: Store) -> int:
    """The highest report index in the log, void ones too; 0 where there is none."""
    newest: dict[tuple[int, int], int] = {}
    for epoch, attempt, segment in _segments(store):
        newest[epoch, attempt] = max(segment, newest.get((epoch, attempt), 0))

    def last_report(of: tuple[tuple[int, int], int]) -> int:
        (epoch, attempt), segment = of
        # A segment may hold nothing but a torn line: then the one before it ends the attempt.
        for number in range(segment, 0, -1):
            if lines := _tail(store, layout.segment_key(epoch, attempt, number)):
                return lines[-1].report
        return 0

    return max(read_many(store, last_report, list(newest.items())), default=0)


def _segments(store: Store) -> list[tuple[int, int, int]]:
    names = (entry.key.rpartition("/")[2] for entry in store.list(layout.METRICS))
    return sorted(found for name in names if (found := layout.parse_segment(name)) is not None)


def _limits(epoch: int, epochs: Mapping[int, EpochRecord]) -> tuple[float, float]:
    """The attempt and the report from which on an epoch's lines are void: a newer driver had the run by then."""
    newer = [record for number, record in epochs.items() if number > epoch]
    return (
        min((record.first_attempt for record in newer), default=float("inf")),
        min((record.first_report for record in newer), default=float("inf")),
    )


def _tail(store: Store, key: str) -> list[ReportLine]:
    try:
        with store.open_read(key) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read()
            if size > _TAIL_BYTES:
                # The first of these lines began before them.
                data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
            lines = list(_decode_lines(data, f"{store.url}/{key}"))
            if lines or size <= _TAIL_BYTES:
                return lines
            file.seek(0)
            return list(_decode_lines(file.read(), f"{store.url}/{key}"))
    except StoreNotFoundError:
        return []


def _decode_lines(data: bytes, where: str) -> Iterator[ReportLine]:
    decode = _decoder.decode
    for number, line in enumerate(data.splitlines(), 1):
        try:
            yield decode(line)
        except (msgspec.DecodeError, RecursionError):
            # A death in mid-append leaves half a line at the end, a loss of power may leave zeros. The report was
            # not acknowledged, or its segment was not flushed yet; the lines around it are still good.
            _log.debug("%s: line %d of those read is no report (torn by a crash); skipped", where, number)
