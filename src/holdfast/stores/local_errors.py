"""Turns an `OSError` of a local disk into a `StorageError` that says what to do."""

from __future__ import annotations

import errno
import os

from holdfast.errors import StorageError, StoreExistsError, StoreNotFoundError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_PRESENT = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space there, or choose another storage_path",
    errno.EDQUOT: "the disk is full (the quota is used up); free some space there, or choose another storage_path",
    errno.EROFS: "the file system is read-only; remount it writable, or choose another storage_path",
    errno.EACCES: "this user may not; change the permissions, or choose another storage_path",
    errno.EPERM: "this user may not; change the owner or permissions, or choose another storage_path",
    errno.ENAMETOOLONG: "the name is too long for this file system; use shorter names",
    errno.ELOOP: "symbolic links lead in a circle; remove them",
    errno.EMFILE: "this process has too many open files; raise `ulimit -n`",
    errno.ENFILE: "the machine has too many open files; raise fs.file-max",
    errno.EIO: "the disk reported an input/output error; check its health (dmesg)",
    errno.ESTALE: "the network file system lost the file; check the mount",
    errno.ENOLCK: "the file system has no locks to give; mount it with locking, or choose another storage_path",
    errno.ENOTSUP: "the file system does not support it; choose another storage_path",
    errno.EFBIG: "the file is larger than this file system or `ulimit -f` allows",
}


def storage_error(action: str, path: str, error: OSError) -> StorageError:
    """The error to raise, from `error`, where `action` on `path` failed.

    Args:
        action: What was tried, as in "Cannot <action> <path>".
    """
    number = error.errno or 0
    reason = os.strerror(number) if number else str(error)
    remedy = _REMEDIES.get(number)
    text = f"Cannot {action} {path!r}: {reason}" + (f": {remedy}" if remedy else "")
    if number in _MISSING:
        return StoreNotFoundError(text)
    if number in _PRESENT:
        return StoreExistsError(text)
    return StorageError(text)
