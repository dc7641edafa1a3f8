"""Digests of files that were read before and have not changed since: frozen weights that are reported again are not read again.

As `make` and `rsync` do, this trusts what stat says; but only where no write could escape it:

- At the time of reading nothing of the file waited to go to the disk, or a write through a mapping might move no time (see
  `stores/page_cache.py`).
- Its last change was some time before, or another one might get the same time stamp.

A clock that is set back, to the very nanosecond of the last change, would deceive it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict

from holdfast.stores.page_cache import is_clean

# Reading less costs no more than asking.
_FROM_BYTES = 256 * 1024
# Time stamps move with the kernel's timer, every 10 ms at most.
_SETTLED_NS = 100_000_000
_MOST_FILES = 100_000

State = tuple[int, int, int, int, int]


class KnownDigests:
    """The digests that one process knows. Safe to use from several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._digests: OrderedDict[State, str] = OrderedDict()

    def find(self, status: os.stat_result) -> str | None:
        """The digest of the file that has this status; None where it is not known, or the file has changed."""
        with self._guard:
            return self._digests.get(_state(status))

    def before_reading(self, descriptor: int, status: os.stat_result) -> State | None:
        """By what the file would be known again, if it is as it is now also after it was read; None where that may not hold."""
        is_settled = time.time_ns() - max(status.st_ctime_ns, status.st_mtime_ns) > _SETTLED_NS
        if status.st_size < _FROM_BYTES or not is_settled or not is_clean(descriptor):
            return None
        return _state(status)

    def remember(self, state: State, status: os.stat_result, digest: str) -> None:
        """Keeps what was read between `before_reading` and a look at the file after it."""
        if _state(status) != state:
            return
        with self._guard:
            self._digests[state] = digest
            if len(self._digests) > _MOST_FILES:
                self._digests.popitem(last=False)


def _state(status: os.stat_result) -> State:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
