"""Opens what was staged, as it lies in a directory or in the memory of the process that made it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat

from holdfast.persistence import layout
from holdfast.records import StagedFile

# What opening a file that was there a moment ago says when somebody removed or replaced it.
REPLACED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
# What a process has open, whether it has a name or not: proc(5).
_OPEN_FILE = re.compile(r"/proc/\d+/fd/\d+")


def source_of(root: str, file: StagedFile) -> str:
    """Where the bytes of a staged file are, on this machine."""
    return _below(root, file) if file.source is None else layout.decode_path(file.source)


def open_source(root: str, file: StagedFile) -> int:
    """A descriptor to read a staged file from; the caller closes it.

    A file that a process holds open is locked (shared `flock`) until the descriptor and its copies are closed: so that
    process can tell when nobody reads it any more.

    Raises:
        OSError: It cannot be opened; one of `REPLACED` where it is not what was staged any more.
    """
    if file.source is None:
        return os.open(_below(root, file), _READ | os.O_NOFOLLOW)
    descriptor = os.open(layout.decode_path(file.source), _READ)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_file_of(path: str) -> tuple[str, os.stat_result] | None:
    """What a link to an open file of some process leads to; None for any other link.

    Raises:
        OSError: It leads to an open file no more.
    """
    target = os.readlink(path)
    if _OPEN_FILE.fullmatch(target) is None:
        return None
    status = os.stat(target)
    return (target, status) if stat.S_ISREG(status.st_mode) else None


def _below(root: str, file: StagedFile) -> str:
    return f"{root}/{layout.decode_path(file.path)}"
