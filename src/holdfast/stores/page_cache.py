"""What the page cache holds of a file that the disk does not have yet (Linux)."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

# `cachestat(2)` has this number on every architecture but one, since Linux 6.5.
_CACHESTAT = 451
# linux/magic.h. These write-protect a page when it goes to the disk, so that the next write through a mapping moves the
# file's times; tmpfs does not.
_EXT4, _XFS, _BTRFS = 0xEF53, 0x58465342, 0x9123683E
_LONGS = 64


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Found(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recent"))


def is_clean(descriptor: int) -> bool:
    """Whether all of an open file is on the disk, so that whoever changes it from now on, by whatever way, moves its times.

    A write through a mapping moves them only when the page was clean: a page that was written to before takes any number of
    writes unseen. False where that cannot be told: on another file system, an older kernel, another system.
    """
    library = _library()
    if library is None:
        return False
    kind = (ctypes.c_long * _LONGS)()
    if library.fstatfs(descriptor, kind) or kind[0] not in (_EXT4, _XFS, _BTRFS):
        return False
    found = _Found()
    if library.syscall(_CACHESTAT, descriptor, ctypes.byref(_Range(0, 0)), ctypes.byref(found), 0):
        return False
    # Memory that is a disk (DAX) has entries without pages, which are counted as evicted and written to unseen.
    return bool(found.dirty == found.writeback == found.evicted == 0)


@functools.cache
def _library() -> ctypes.CDLL | None:
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return None
    library = ctypes.CDLL(None)
    return library if all(_has(library, name) for name in ("fstatfs", "syscall")) else None


def _has(library: ctypes.CDLL, name: str) -> bool:
    function: Callable[..., int] | None = getattr(library, name, None)
    return function is not None
