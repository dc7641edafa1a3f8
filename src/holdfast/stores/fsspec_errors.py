"""Turns what a file system of fsspec raises into a `StorageError` that says what to do.

Each has errors of its own; what they share are Python's built-in kinds, the numbers of an `OSError`, and the status codes of HTTP.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from holdfast.errors import (
    ConfigurationError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    StoreExistsError,
    StoreNotFoundError,
)
from holdfast.secrecy import hidden

_LONGEST_REASON = 400
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_PRESENT = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_PASSING = frozenset(
    {
        errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EPIPE, errno.EBUSY, errno.ENETDOWN,
        errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED,
        errno.ENOTCONN, errno.ESHUTDOWN,
    }
)  # fmt: skip
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Of classes that are nobody's but their package's, by what their names say.
_ACCESS_NAMES = ("auth", "credential", "login", "permission", "forbidden", "hostkey")
_PASSING_NAMES = ("timeout", "connect", "unavailable", "sshexception", "throttl", "reset")
# Of those that pass, what the connection outlives.
_BROKEN = _PASSING - {errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.EBUSY}
# Of errors without a number, by what they say: paramiko's, and those of sockets that had a limit of time.
_BROKEN_TEXTS = ("socket is closed", "timed out", "not connected", "connection", "session not active")
_ACCESS_REMEDY = "these credentials may not; correct them, or the rights at that place"
_PASSING_REMEDY = "it cannot be reached, or does not answer; check the host, the network, and whether it runs"


def fsspec_error(action: str, where: str, error: BaseException, secrets: Sequence[str]) -> StorageError:
    """The error to raise where `action` on `where` failed.

    It is to be raised from `cause_of(error)`: the text of the original may show what must not be shown.

    Args:
        action: What was tried, as in "Cannot <action> <where>".
        secrets: Texts that must not appear.
    """
    kind, remedy = _judge(error)
    text = f"Cannot {action} {where!r}: {remedy}" if remedy else f"Cannot {action} {where!r}"
    reason = plain_reason(error, secrets)
    return kind(f"{text} ({reason})" if reason else text)


def cause_of(error: BaseException) -> OSError | None:
    """What may be shown of the error as a cause: the number that says whether another try is worth it."""
    number = error.errno if isinstance(error, OSError) else None
    return OSError(number, os.strerror(number)) if isinstance(number, int) and number > 0 else None


def options_error(where: str, error: BaseException, secrets: Sequence[str]) -> ConfigurationError:
    """The error to raise where a file system cannot be made of its options."""
    return ConfigurationError(
        f"{where!r} cannot be used with these options: {plain_reason(error, secrets)}; correct the URL or storage_options"
    )


def plain_reason(error: BaseException, secrets: Sequence[str]) -> str:
    """What an error says, on one line, short, and without secrets."""
    text = " ".join(hidden(str(error), secrets).split())
    text = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _judge(error: BaseException) -> tuple[type[StorageError], str]:
    number = error.errno if isinstance(error, OSError) else None
    status = _status(error)
    name = type(error).__name__.lower()
    if (
        isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        or number in _MISSING
        or status == 404
    ):
        return StoreNotFoundError, "there is nothing of that name"
    if isinstance(error, FileExistsError) or number in _PRESENT or status in (409, 412):
        return StoreExistsError, "something lies there"
    if isinstance(error, PermissionError) or number in _REFUSED or status in (401, 403):
        return StorageAccessError, _ACCESS_REMEDY
    if number in _FULL or status == 507:
        return StorageError, "there is no space left; free some, or choose another storage_path"
    passes = isinstance(error, TimeoutError | ConnectionError | EOFError) or number in _PASSING or _is_broken(error)
    if passes or status == 429 or (status is not None and status >= 500 and status != 501):
        return StorageUnavailableError, _PASSING_REMEDY
    if isinstance(error, NotImplementedError) or status in (405, 501):
        return StorageError, "this file system cannot do that"
    if any(part in name for part in _ACCESS_NAMES):
        return StorageAccessError, _ACCESS_REMEDY
    # Names that cannot be looked up (socket.gaierror), and the SSL layer's, are an OSError with numbers of their own.
    if any(part in name for part in (*_PASSING_NAMES, "gaierror", "ssl")):
        return StorageUnavailableError, _PASSING_REMEDY
    return StorageError, ""


def breaks_connection(error: BaseException) -> bool:
    """Whether the client that raised it has most likely lost its connection."""
    number = error.errno if isinstance(error, OSError) else None
    name = type(error).__name__.lower()
    return (
        isinstance(error, TimeoutError | ConnectionError | EOFError)
        or number in _BROKEN
        or any(part in name for part in ("sshexception", "connect", "ssl", "timeout"))
        or _is_broken(error)
    )


def _is_broken(error: BaseException) -> bool:
    """Whether an error that has no number tells of a connection that is gone."""
    text = str(error).lower()
    if isinstance(error, OSError) and error.errno is None:
        return any(part in text for part in _BROKEN_TEXTS)
    # FTP's numbers for a connection that is closed, cannot be opened, or broke off.
    return type(error).__module__ == "ftplib" and text.startswith(("421", "425", "426"))


def _status(error: BaseException) -> int | None:
    """The status that a server of HTTP answered with, wherever the client puts it."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            found = getattr(holder, name, None)
            if isinstance(found, int) and not isinstance(found, bool) and 400 <= found < 600:
                return found
    return None
