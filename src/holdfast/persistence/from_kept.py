"""Reads a checkpoint's file from what this machine has kept of it, where its digest shows that it is the same."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from typing import BinaryIO

from holdfast.errors import StorageError
from holdfast.persistence.digest import FileHasher, is_known
from holdfast.records import StoredFile
from holdfast.stores.local import LocalStore
from holdfast.stores.local_copy import copy_bytes

_LOG = logging.getLogger("holdfast")


def open_from_kept(kept: Mapping[str, str], file: StoredFile) -> BinaryIO | None:
    """One file for reading, as a copy without a name of what this machine has of it; None where that is not the same."""
    descriptor = _open_kept(kept, file)
    if descriptor is None:
        return None
    hasher = FileHasher(like=file.digest)
    try:
        with tempfile.TemporaryFile() as copy:
            copy_bytes(descriptor, copy.fileno(), file.size_bytes, hasher)
            return open(f"/proc/self/fd/{copy.fileno()}", "rb") if hasher.text() == file.digest else None
    except OSError as error:  # should the disk be full: reading from the store needs none
        _LOG.debug("%s cannot be read from what was kept: %s", file.path, error)
        return None
    finally:
        os.close(descriptor)


def copy_kept(kept: Mapping[str, str], target: LocalStore, key: str, file: StoredFile) -> bool:
    """Whether the target has the file now; else nothing is there."""
    descriptor = _open_kept(kept, file)
    if descriptor is None:
        return False
    hasher = FileHasher(like=file.digest)
    try:
        target.put_file(key, descriptor, size_bytes=file.size_bytes, mode=file.mode, hasher=hasher)
    except StorageError as error:  # should the disk be full, fetching says so
        _LOG.debug("%s cannot be copied from what was kept: %s", file.path, error)
        return False
    finally:
        os.close(descriptor)
    if hasher.text() == file.digest:
        return True
    # It was written to since, or its memory is in use for something else: as good as not kept.
    target.delete(key)
    return False


def _open_kept(kept: Mapping[str, str], file: StoredFile) -> int | None:
    """What may be the file, if it has its size; only its digest tells."""
    place = kept.get(file.path)
    if place is None or file.digest is None or not is_known(file.digest):
        return None
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:  # the node is gone, or has let go of it
        return None
    if os.fstat(descriptor).st_size == file.size_bytes:
        return descriptor
    os.close(descriptor)
    return None
