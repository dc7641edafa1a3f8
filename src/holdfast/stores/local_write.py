"""Small writes on a local disk: whole or not at all, appended or taken back."""

from __future__ import annotations

import itertools
import os
import re

from holdfast.stores.base import AppendHandle
from holdfast.stores.local_errors import storage_error

_TEMPORARY = re.compile(r"^\.holdfast-[0-9a-f]+-\d+-\d+\.tmp$")
_tag = os.urandom(4).hex()
_counter = itertools.count()


def is_temporary_name(name: str) -> bool:
    """Whether a file's name is one that a write of ours uses before it renames; a crash can leave such a file."""
    return bool(_TEMPORARY.match(name))


class LocalAppend(AppendHandle):
    """The end of a growing file with one writer; an append is there whole or, after an error, not at all."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes) -> None:
        """One `write` of the kernel; what a full disk took of it is taken back."""
        written = 0
        try:
            # Dead in mid-write: a torn last line. Bytes that the kernel took survive this process.
            written = os.write(self._descriptor, data)
            while written < len(data):
                written += os.write(self._descriptor, memoryview(data)[written:])
        except BaseException as error:
            if written:
                # A full disk took a part: take it back, or the next append would join it to a line of its own.
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            if isinstance(error, OSError):
                raise storage_error("append to", self._path, error) from error
            raise

    def close(self) -> None:
        """Closes the file; safe to repeat."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def temporary_name() -> str:
    """A hidden name that no other process or thread uses."""
    return f".holdfast-{_tag}-{os.getpid()}-{next(_counter)}.tmp"


def write_new(path: str, data: bytes | memoryview, mode: int | None = None) -> None:
    """Writes a new file, and leaves none behind where that fails.

    Args:
        mode: Permission bits, whatever the umask is; None for what it makes of 0o644.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            written = os.write(descriptor, data)
            while written < len(data):
                written += os.write(descriptor, memoryview(data)[written:])
            if mode is not None:
                os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
    except BaseException:
        unlink_quietly(path)
        raise


def unlink_quietly(path: str) -> None:
    """Removes a file whose presence harms nobody: the next start of the run would collect it."""
    try:
        os.unlink(path)
    except OSError:
        return
