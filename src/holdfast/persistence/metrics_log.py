"""The metrics log: one line for every report of a run, appended, never rewritten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from holdfast.errors import StorageError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.reads import read_many
from holdfast.persistence.segments import Segments
from holdfast.records import EpochRecord, ReportLine
from holdfast.stores.base import AppendHandle, Store

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("holdfast")
_SEGMENT_BYTES = 64 << 20
_FLUSH_S = 1.0
# Enough for the last line of nearly any log; a longer one costs a second, larger read.
_TAIL_BYTES = 64 << 10

_T = TypeVar("_T")
_Life = tuple[int, int]
"""An attempt of a driver: epoch, attempt."""

_encode_text = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(ReportLine)


class _Segment(NamedTuple):
    """One that counts.

    Attributes:
        first_void_report: From which on its lines do not.
    """

    life: _Life
    key: str
    first_void_report: float


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
    process. On others lines wait in memory for at most a second, and go out together as a segment of their own
    (`segments`).
    """

    def __init__(self, store: Store, epoch: int, attempt: int, *, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._store = store
        self._epoch = epoch
        self._attempt = attempt
        self._segment_bytes = segment_bytes
        self._segments = Segments(store, lambda number: layout.segment_key(epoch, attempt, number))
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
                stored_bytes = self._segments.add(data)
                with self._lock:
                    left = [data[stored_bytes:]] if stored_bytes < len(data) else []
                    self._waiting[:num_lines] = left

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

    A driver may merge segments meanwhile (`segments`). So a line that is there twice comes once, and where a segment is gone that was
    listed, its attempt is listed again. A driver that was stalled may write its last lines after the next one has done so for it
    (`lost_lines`): they, too, come once.

    Args:
        epochs: The run's epoch records: they tell what a replaced driver wrote after its time.
    """
    newest = 0
    for line in _read_lives(store, epochs):
        if line.report > newest:
            newest = line.report
            yield line


def _read_lives(store: Store, epochs: Mapping[int, EpochRecord]) -> Iterator[ReportLine]:
    lost: set[str] = set()
    begin: _Life | None = (0, 0)
    while begin is not None:
        listed = [each for each in _valid_segments(store, epochs) if each.life >= begin]
        begin = None

        def read(segment: _Segment) -> bytes | None:
            try:
                return store.read(segment.key)
            except StoreNotFoundError:
                return None

        # Of one life, by report: the order of segments says nothing where some are left that were merged, which are not where a
        # store can append.
        merges = not store.capabilities.append
        lines: dict[int, ReportLine] = {}
        life: _Life | None = None
        # A store that cannot append may have many.
        for segment, data in zip(listed, read_many(store, read, listed), strict=True):
            if segment.life != life:
                yield from _in_order(lines)
                lines, life = {}, segment.life
            if data is None:
                # Once: a listing may go on to show what is not there.
                if merges and segment.key not in lost:
                    lost.add(segment.key)
                    begin = life
                    break
                continue
            for line in _decode_lines(data, f"{store.url}/{segment.key}"):
                if line.report >= segment.first_void_report:
                    continue
                if merges:
                    lines.setdefault(line.report, line)
                else:
                    yield line
        else:
            yield from _in_order(lines)


def _in_order(lines: Mapping[int, ReportLine]) -> Iterator[ReportLine]:
    for report in sorted(lines):
        yield lines[report]


def last_line(store: Store, epochs: Mapping[int, EpochRecord]) -> ReportLine | None:
    """The newest report of a run, without reading what lies before it."""
    return _unless_merged(lambda lost: _last_line(store, epochs, lost))


def _last_line(store: Store, epochs: Mapping[int, EpochRecord], lost: set[str]) -> ReportLine | None:
    for segment in reversed(_valid_segments(store, epochs)):
        for line in reversed(_tail(store, segment.key, lost)):
            if line.report < segment.first_void_report:
                return line
    return None


def highest_attempt(store: Store) -> int:
    """The highest attempt that has a log, void ones too; 0 where there is none."""
    return max((attempt for _, attempt, _ in _segments(store)), default=0)


def highest_report(store: Store) -> int:
    """The highest report index in the log, void ones too; 0 where there is none."""
    return _unless_merged(lambda lost: _highest_report(store, lost))


def _highest_report(store: Store, lost: set[str]) -> int:
    lives: dict[_Life, list[int]] = {}
    for epoch, attempt, segment in _segments(store):
        lives.setdefault((epoch, attempt), []).append(segment)

    def last_report(of: tuple[_Life, list[int]]) -> int:
        # A segment may hold nothing but a torn line: then the one before it ends the attempt.
        for number in reversed(of[1]):
            if lines := _tail(store, layout.segment_key(*of[0], number), lost):
                return lines[-1].report
        return 0

    return max(read_many(store, last_report, list(lives.items())), default=0)


class _MergedError(Exception):
    """A segment is gone that was listed."""


def _unless_merged(look: Callable[[set[str]], _T]) -> _T:
    """What a look at the log gives that met no segment which was merged with others after it had been listed.

    Args:
        look: Takes the keys that were listed and are not there, and adds to them before it raises.
    """
    lost: set[str] = set()
    while True:
        try:
            return look(lost)
        except _MergedError:
            continue


def _valid_segments(store: Store, epochs: Mapping[int, EpochRecord]) -> list[_Segment]:
    found = []
    for epoch, attempt, number in _segments(store):
        first_attempt, first_report = _limits(epoch, epochs)
        if attempt < first_attempt:
            found.append(_Segment((epoch, attempt), layout.segment_key(epoch, attempt, number), first_report))
    return found


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


def _tail(store: Store, key: str, lost: set[str]) -> list[ReportLine]:
    """The last lines of a segment.

    Raises:
        _MergedError: It is not there, which was not known.
    """
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
        if key in lost:
            return []
        lost.add(key)
        raise _MergedError from None


def _decode_lines(data: bytes, where: str) -> Iterator[ReportLine]:
    decode = _decoder.decode
    for number, line in enumerate(data.splitlines(), 1):
        try:
            yield decode(line)
        except (msgspec.DecodeError, RecursionError):
            # A death in mid-append leaves half a line at the end, a loss of power may leave zeros. The report was
            # not acknowledged, or its segment was not flushed yet; the lines around it are still good.
            _log.debug("%s: line %d of those read is no report (torn by a crash); skipped", where, number)
