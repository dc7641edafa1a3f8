"""Directories of this machine that only this user's processes use: for copies of remote checkpoints, and for new ones."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from holdfast.errors import StorageError
from holdfast.stores.base import Store
from holdfast.stores.local_errors import storage_error


def user_place(purpose: str) -> Path:
    """Where this user's processes keep what they share; it need not exist."""
    return Path(tempfile.gettempdir(), f"holdfast-{os.getuid()}", purpose)


def staging_place(run: Store) -> Path | None:
    """Where the workers of a remote run write what they are about to report; None for a run on a local path.

    Args:
        run: Rooted at the run's directory.
    """
    if run.local_path() is not None:
        return None
    return user_place("staging") / hashlib.sha256(run.url.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def make_private(directory: Path) -> None:
    """Makes a directory; nobody else may own it or write to it, nor to the one that all of this user's lie in.

    Raises:
        StorageError: Others can write there, or it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = user_place("")
        for each in (directory, ours) if ours in directory.parents else (directory,):
            status = os.lstat(each)
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not is_ours or stat.S_IMODE(status.st_mode) & 0o022:
                raise StorageError(
                    f"Others can write to the directory for files of checkpoints, {str(each)!r}; "
                    f"remove it, or set TMPDIR to a directory of your own"
                )
    except OSError as error:
        raise storage_error("make the directory for files of checkpoints", str(directory), error) from error
