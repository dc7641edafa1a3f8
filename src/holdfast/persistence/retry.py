"""Which failures of a disk or network mount are worth another try, and how long to wait for it."""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from dataclasses import dataclass

from holdfast.errors import StorageError

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
        attempts: Tries in all for what passes by itself (a timeout, an input/output error).
        first_wait_s: The wait before the second try; each further one is twice as long, at most `longest_wait_s`,
            and shortened by a random part so that ranks do not come back all at once.
        disk_full_s: How long to wait for space on a full disk before the upload fails.
    """

    attempts: int = 5
    first_wait_s: float = 0.05
    longest_wait_s: float = 2.0
    disk_full_s: float = 10.0


class Retries:
    """The failures of one file so far."""

    def __init__(self, policy: RetryPolicy, stop: threading.Event) -> None:
        self._policy = policy
        self._stop = stop
        self._failures = 0
        self._full_since_s: float | None = None

    def wait_after(self, error: BaseException, what: str) -> bool:
        """Waits for the next try; False where there is none: the error is final, or the upload was stopped.

        Args:
            what: What failed, as the log calls it.
        """
        number = _errno_of(error)
        policy = self._policy
        self._failures += 1
        wait_s = min(policy.first_wait_s * 2 ** (self._failures - 1), policy.longest_wait_s)
        if number in _DISK_FULL:
            now_s = time.monotonic()
            self._full_since_s = now_s if self._full_since_s is None else self._full_since_s
            if now_s - self._full_since_s + wait_s > policy.disk_full_s:
                return False
        elif number not in _TRANSIENT or self._failures >= policy.attempts:
            return False
        wait_s *= random.uniform(0.5, 1.0)
        _LOG.warning("%s failed and is tried again in %.2f s: %s", what, wait_s, error)
        return not self._stop.wait(wait_s)


def _errno_of(error: BaseException) -> int | None:
    if isinstance(error, StorageError) and isinstance(error.__cause__, OSError):
        return error.__cause__.errno
    return error.errno if isinstance(error, OSError) else None
