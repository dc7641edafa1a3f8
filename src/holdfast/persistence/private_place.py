"""Directories of this machine that only this user's processes use: for copies of remote checkpoints, and for new ones."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from holdfast.errors import StorageError
from holdfast.stores.local_errors import storage_error


def user_place(purpose: str, top: Path | None = None) -> Path:
    """Where this user's processes keep what they share; it need not exist.

    Args:
        top: By default where temporary files go.
    """
    return Path(top or tempfile.gettempdir(), _user_directory(), purpose)


def make_private(directory: Path) -> None:
    """Makes a directory; nobody else may own it or write to it, nor to the one that all of this user's lie in.

    Raises:
        StorageError: Others can write there, or it cannot be made.
    """
    upwards = [directory, *directory.parents]
    ours = next((number for number, each in enumerate(upwards) if each.name == _user_directory()), 0)
    try:
        upwards[ours].parent.mkdir(parents=True, exist_ok=True)
        for each in reversed(upwards[: ours + 1]):
            each.mkdir(mode=0o700, exist_ok=True)
            status = os.lstat(each)
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not is_ours or stat.S_IMODE(status.st_mode) & 0o022:
                raise StorageError(
                    f"Others can write to the directory for files of checkpoints, {str(each)!r}; "
                    f"remove it, or set TMPDIR to a directory of your own"
                )
    except OSError as error:
        raise storage_error("make the directory for files of checkpoints", str(directory), error) from error


def _user_directory() -> str:
    return f"holdfast-{os.getuid()}"
