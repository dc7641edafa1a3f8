"""A driver's lines in the metrics log, through its attempts: in order, and none left out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable

from holdfast.errors import StorageError
from holdfast.persistence.metrics_log import MetricsLog
from holdfast.persistence.retry import RetryPolicy, retried
from holdfast.stores.base import Store

# Not for long, for the controller waits here.
_RETRY = RetryPolicy(limit_s=5.0, longest_wait_s=0.5, disk_full_s=1.0)


class ReportLines:
    """Appends lines, those that could not be written first. Safe for threads.

    Attributes:
        attempt: Whose lines come now.
    """

    def __init__(self, store: Store, epoch: int, attempt: int) -> None:
        self.attempt = attempt
        self._store = store
        self._epoch = epoch
        self._log = MetricsLog(store, epoch, attempt)
        self._owed: list[bytes] = []
        self._appending = threading.Lock()

    def begin_attempt(self, attempt: int) -> None:
        """From now on they are another attempt's; what is in memory is written before.

        Raises:
            StorageError: It could not be.
        """
        if attempt != self.attempt:
            self._log.close()
            self.attempt = attempt
            self._log = MetricsLog(self._store, self._epoch, attempt)

    def add(self, line: bytes, *, is_committed: bool) -> None:
        """Appends a line; see `MetricsLog.append` for when it survives the death of this process.

        Args:
            is_committed: What it tells of has happened: where it cannot be written now, it is before the next line, and before
                `settle` returns.

        Raises:
            StorageError: It could not be written, or one before it.
        """
        with self._appending:
            self._owed.append(line)
            try:
                self._append_owed()
            except StorageError:
                if not is_committed:
                    self._owed.remove(line)
                raise

    def add_lost(self, lines: Iterable[bytes]) -> None:
        """Appends what an earlier driver had no time for.

        Raises:
            StorageError: One could not be written.
        """
        for line in lines:
            # Dying between two of them leaves those that are missing to the next driver.
            self.add(line, is_committed=True)

    def settle(self) -> None:
        """Writes all that is owed, or waits in memory.

        Raises:
            StorageError: It could not be written.
        """
        with self._appending:
            self._append_owed()
        self._log.flush()

    def close(self) -> None:
        """Ends the log; safe to repeat.

        Raises:
            StorageError: The last lines could not be written.
        """
        self._log.close()

    def _append_owed(self) -> None:
        while self._owed:
            # An append that fails is taken back, so it may be repeated.
            retried(functools.partial(self._log.append, self._owed[0]), "Writing a report to the metrics log", _RETRY)
            del self._owed[0]
