"""What workers and validations print, kept in the run.

A store that can append takes each line at once. Elsewhere lines gather in a file of this machine that has no name, and all of them
go out as one object, again and again, with pauses that grow with its size. A driver that dies loses what the last of them lacks.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time

from holdfast.errors import StorageError
from holdfast.persistence import layout
from holdfast.stores.base import AppendHandle, Store
from holdfast.stores.local_copy import read_exactly

_LOG = logging.getLogger("holdfast")
_FIRST_PAUSE_S = 5.0
# What is sent again and again takes no more than this of the network.
_BYTES_PER_S = 1 << 20
# Then the next object begins: no more is sent at once, or held in memory for it.
_LARGEST_BYTES = 32 << 20
_CLOSE_S = 10.0


class Logs:
    """The logs of one run that this process writes. Safe for threads.

    Args:
        store: Rooted at the run's directory.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: list[_GatheredLog] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self, key: str) -> AppendHandle:
        """A log that is written to for a while.

        Raises:
            StorageError: It cannot be.
        """
        if self._store.capabilities.append:
            return self._store.open_append(key)
        log = _GatheredLog(self._store, key, self._changed)
        with self._changed:
            self._open.append(log)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="holdfast-logs", daemon=True)
                self._thread.start()
        return log

    def close(self) -> None:
        """Sends what has not been sent; not for long, for the training itself is over and saved. Safe to repeat."""
        with self._changed:
            self._closed = True
            for log in self._open:
                log.close()
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join(_CLOSE_S)
            if thread.is_alive():
                _LOG.warning("the last lines of what was printed could not be kept in %s in time", self._store.url)

    def _send(self) -> None:
        while True:
            with self._changed:
                self._open = [log for log in self._open if not log.is_done]
                waits_s = {log: wait_s for log in self._open if (wait_s := log.due_in_s()) is not None}
                due = [log for log, wait_s in waits_s.items() if wait_s <= 0]
                if not due:
                    if self._closed:
                        return
                    self._changed.wait(min(waits_s.values(), default=None))
                    continue
            for log in due:
                log.send()


class _GatheredLog:
    """A log in a store that cannot append."""

    def __init__(self, store: Store, key: str, changed: threading.Condition) -> None:
        self._store = store
        self._key = key
        self._changed = changed
        self._part = 0
        self._file = _nameless(key)
        self._size_bytes = 0
        self._sent_bytes = 0
        self._next_s = time.monotonic() + _FIRST_PAUSE_S
        self._ended = False
        self._is_told = False

    def write(self, data: bytes) -> None:
        """Adds lines; it never waits for the store."""
        with self._changed:
            if self._ended:
                return
            if self._sent_bytes == self._size_bytes:
                self._changed.notify_all()  # the first that has to be sent again
            try:
                view = memoryview(data)
                while view:
                    num_bytes = os.write(self._file, view)
                    view = view[num_bytes:]
                    self._size_bytes += num_bytes
            except OSError as error:
                raise StorageError(f"Cannot keep the log {self._key!r}: {os.strerror(error.errno or 0)}") from error

    def close(self) -> None:
        """Nothing more comes; the rest is sent behind."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be sent; then its file is closed."""
        if self._ended and self._sent_bytes == self._size_bytes and self._file >= 0:
            os.close(self._file)
            self._file = -1
        return self._file < 0

    def due_in_s(self) -> float | None:
        """How long what there is to be sent has to wait; None where there is nothing."""
        if self._sent_bytes == self._size_bytes:
            return None
        return 0.0 if self._ended else self._next_s - time.monotonic()

    def send(self) -> None:
        """Puts what there is, over what was put before."""
        with self._changed:
            num_bytes, was_ended = min(self._size_bytes, _LARGEST_BYTES), self._ended
        is_sent = True
        try:
            # What has been written does not change any more.
            data = read_exactly(self._file, 0, num_bytes)
            # Dying on the next line leaves the log as it was sent before.
            self._store.write(layout.log_part_key(self._key, self._part), data)
        except (StorageError, OSError) as error:
            is_sent = False
            if not self._is_told:
                self._is_told = True
                _LOG.warning("the log %s could not be kept in the run: %s", self._key, error)
        with self._changed:
            self._next_s = time.monotonic() + max(_FIRST_PAUSE_S, num_bytes / _BYTES_PER_S)
            if is_sent and num_bytes == _LARGEST_BYTES:
                self._begin_part()
            elif is_sent:
                self._sent_bytes = num_bytes
            elif was_ended:  # it is not tried again: nobody waits for it
                self._sent_bytes = self._size_bytes

    def _begin_part(self) -> None:
        """Goes on with what the object that is full does not hold."""
        try:
            file = _nameless(self._key)
            copied_bytes = 0
            while left_bytes := self._size_bytes - _LARGEST_BYTES - copied_bytes:
                data = read_exactly(self._file, _LARGEST_BYTES + copied_bytes, min(left_bytes, _LARGEST_BYTES))
                copied_bytes += os.write(file, data)
        except (OSError, StorageError) as error:
            _LOG.warning("the log %s is kept no further: %s", self._key, error)
            self._ended = True
            self._sent_bytes = self._size_bytes
            return
        os.close(self._file)
        self._file = file
        self._part += 1
        self._size_bytes, self._sent_bytes = copied_bytes, 0


def append_text(store: Store, key: str, text: str) -> None:
    """Adds a text to a log; one that cannot be written is told of and fails nothing.

    In a store that cannot append it is an object of its own, `<key>.end`: the log's own lines may still be on their way.

    Args:
        store: Rooted at the run's directory.
    """
    data = text.encode("utf-8", "surrogateescape")
    try:
        if not store.capabilities.append:
            store.write(layout.log_end_key(key), data)
            return
        log = store.open_append(key)
        try:
            log.write(data)
        finally:
            log.close()
    except StorageError as error:
        _LOG.warning("the log %s could not be written: %s", key, error)


def _nameless(key: str) -> int:
    try:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise StorageError(f"Cannot keep the log {key!r}: {os.strerror(error.errno or 0)}") from error
