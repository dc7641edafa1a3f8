"""Which failures of a disk, a network mount or an object store are worth another try, and how long to wait for it."""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from holdfast.errors import StorageError

T = TypeVar("T")
_WARN_EVERY_S = 10.0
_LOG = logging.getLogger("holdfast")
_TRANSIENT = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.ESTALE,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.EBUSY,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ECONNRESET,
    }
)
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class RetryPolicy:
    """How long a failing file is tried again.

    Attributes:
        limit_s: How long what passes by itself (a timeout, an input/output error) is tried again.
        first_wait_s: The wait before the second try; each further one is twice as long, at most `longest_wait_s`,
            and shortened by a random part so that ranks do not come back all at once.
        disk_full_s: How long to wait for space on a full disk before the upload fails.
    """

    limit_s: float = 120.0
    first_wait_s: float = 0.05
    longest_wait_s: float = 5.0
    disk_full_s: float = 10.0


class Retries:
    """The failures of one file so far."""

    def __init__(self, policy: RetryPolicy, stop: threading.Event) -> None:
        self._policy = policy
        self._stop = stop
        self._failures = 0
        self._since_s: dict[bool, float] = {}
        self._warned_s = float("-inf")

    def wait_after(self, error: BaseException, what: str) -> bool:
        """Waits for the next try; False where there is none: the error is final, or the upload was stopped.

        Args:
            what: What failed, as the log calls it.
        """
        number = _errno_of(error)
        policy = self._policy
        self._failures += 1
        wait_s = min(policy.first_wait_s * 2 ** (self._failures - 1), policy.longest_wait_s)
        if number not in _TRANSIENT and number not in _DISK_FULL and not _may_pass(error):
            return False
        if self._stop.is_set():  # said before it is promised in the log
            return False
        is_full = number in _DISK_FULL
        now_s = time.monotonic()
        since_s = self._since_s.setdefault(is_full, now_s)
        if now_s - since_s + wait_s > (policy.disk_full_s if is_full else policy.limit_s):
            return False
        wait_s *= random.uniform(0.5, 1.0)
        if now_s - self._warned_s >= _WARN_EVERY_S:
            self._warned_s = now_s
            _LOG.warning("%s failed and is tried again from now on, at first in %.2f s: %s", what, wait_s, error)
        return not self._stop.wait(wait_s)


def retried(operation: Callable[[], T], what: str, policy: RetryPolicy, stop: threading.Event | None = None) -> T:
    """Does something that is safe to repeat until it succeeds, or fails for good.

    Args:
        what: What it does, as the log calls it.
        stop: Once it is set, a failure is the last.

    Raises:
        StorageError: As `operation` does, at last.
    """
    retries: Retries | None = None
    while True:
        try:
            return operation()
        except StorageError as error:
            retries = retries or Retries(policy, stop or threading.Event())
            if not retries.wait_after(error, what):
                raise


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, StorageError) and error.may_pass


def _errno_of(error: BaseException) -> int | None:
    if isinstance(error, StorageError) and isinstance(error.__cause__, OSError):
        return error.__cause__.errno
    return error.errno if isinstance(error, OSError) else None
