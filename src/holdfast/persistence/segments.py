"""Segments of the metrics log on a store that cannot append: one for each second of training, and few in the end.

Every so often those that were written since are merged: a new segment that holds them all is created, read back, and only then are
they deleted. Nothing is ever written over, so a request that arrives late does no harm. Dying between two of these steps, or a
deletion that fails for some, leaves lines that are in two segments of their attempt, in any order; readers see each once
(`metrics_log`). The newest line is in the last segment at all times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.errors import StorageError, StoreExistsError
from holdfast.stores.base import Store

_log = logging.getLogger("holdfast")
# A minute's segments: what a reader of a live run meets at most, beside merged ones. Their lines are in memory until then.
_MERGED_AT_ONCE = 60
_MERGED_BYTES = 4 << 20
# A merged segment of this size is not merged again. Each is written again once a minute until then.
_FULL_BYTES = 256 << 10


class Segments:
    """Writes the segments of one attempt of one driver; for one thread at a time.

    Args:
        key_of: The key of a segment's number; numbers begin with 1.
    """

    def __init__(self, store: Store, key_of: Callable[[int], str]) -> None:
        self._store = store
        self._key_of = key_of
        self._last = 0
        # Contiguous, and the last ones: what is merged must not stand behind lines that are younger.
        self._small: list[tuple[int, bytes]] = []

    def add(self, lines: bytes) -> int:
        """Writes lines as a segment of their own.

        Returns:
            How many bytes of them are in it now: all, or those of an earlier try whose answer was lost.

        Raises:
            StoreExistsError: Another driver, which counts as this one does and is alive, has written there.
            StorageError: It failed; the number is tried again, for the answer may have been lost.
        """
        number = self._last + 1
        stored = self._create(number, lines)
        self._last = number
        self._small.append((number, lines[:stored]))
        num_bytes = sum(len(each) for _, each in self._small)
        if num_bytes >= _MERGED_BYTES or len(self._small) >= _MERGED_AT_ONCE:
            self._merge()
            if num_bytes >= _FULL_BYTES:
                self._small = []
        return stored

    def _create(self, number: int, lines: bytes) -> int:
        key = self._key_of(number)
        try:
            # Dying on the next line loses nothing: the segment is whole and will be read.
            self._store.create(key, lines)
        except StoreExistsError:
            found = self._store.read(key)
            if not found or not lines.startswith(found):
                raise
            return len(found)
        return len(lines)

    def _merge(self) -> None:
        """Where anything fails, all stays as it is and is not merged any more: its lines are there."""
        merged, self._small = self._small, []
        if len(merged) < 2:
            return
        # Used up whatever happens: what is created without an answer must not be met by the next lines.
        self._last += 1
        lines = b"".join(each for _, each in merged)
        key = self._key_of(self._last)
        try:
            # Dying on the next line leaves the lines twice, once this is there.
            self._store.create(key, lines)
            if self._store.read(key) != lines:
                return
            # Dying within the next line leaves any of them twice.
            self._store.delete_many([self._key_of(number) for number, _ in merged])
        except StorageError as error:
            _log.debug("segments of the metrics log could not be merged, and stay as they are: %s", error)
            return
        self._small = [(self._last, lines)]
