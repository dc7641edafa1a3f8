"""Fetches one large file in the parts that its digest has, each by whichever thread is free.

A thread that fetches a whole file writes and digests with one core what several connections bring. By parts all cores do, and as no
part waits for the one before it, nothing that has come is held for long: memory that is taken anew costs as much as to copy it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable

from holdfast.errors import StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.digest import PART_BYTES, FileHasher, PartHasher, is_known
from holdfast.persistence.download_checks import compare, damaged
from holdfast.records import StoredFile
from holdfast.stores.base import Hasher, PartRefusedError, Store
from holdfast.stores.local_errors import storage_error

# As `stores.local_copy` says.
_WRITTEN_BYTES = 128 * 1024


class FileInParts:
    """A file on its way.

    Args:
        place: Where it goes; nothing is there.
        stopped: Set where another file failed: then no part goes on.
        fetch_whole: Fetches all of it where the store gives no parts.
    """

    def __init__(
        self,
        store: Store,
        place: str,
        file: StoredFile,
        *,
        stopped: threading.Event,
        fetch_whole: Callable[[], None],
    ) -> None:
        self._store = store
        self._place = place
        self._file = file
        self._stopped = stopped
        self._fetch_whole = fetch_whole
        self._guard = threading.Lock()
        self._hasher = FileHasher(like=file.digest)
        self._left = -(-file.size_bytes // PART_BYTES)
        self._has_parts = False
        self._is_whole = False

    @staticmethod
    def suits(store: Store, file: StoredFile) -> bool:
        """Whether the file can come in parts, as far as is known."""
        # Parts that nothing compares could be of one object and of its successor.
        if file.digest is None or not is_known(file.digest) or FileHasher(like=file.digest).is_whole:
            return False
        return store.capabilities.parts and file.size_bytes > PART_BYTES

    def tasks(self) -> list[Callable[[], None]]:
        """What is to be called, in any order and by any threads, until the file is there; the last one compares the digest."""
        return [functools.partial(self._fetch, number) for number in range(self._left)]

    def _fetch(self, number: int) -> None:
        start = number * PART_BYTES
        end = min(start + PART_BYTES, self._file.size_bytes)
        hasher = PartHasher()
        try:
            if self._is_whole or not self._fetch_bytes(start, end, hasher):
                return
        except PartRefusedError as error:
            self._instead_of_parts(error)
            return
        except StoreNotFoundError as error:
            raise damaged(self._store, self._file, "missing") from error
        with self._guard:
            self._hasher.add_part(number, hasher.digest(), end - start)
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            compare(self._store, self._file, self._hasher)
            try:
                os.chmod(self._place, self._file.mode)
            except OSError as error:
                raise storage_error("write", self._place, error) from error

    def _fetch_bytes(self, start: int, end: int, hasher: Hasher) -> bool:
        """Whether all of them came; else nobody wants them any more."""
        part = self._store.part(layout.decode_path(self._file.path), self._file.size_bytes, start, end)
        # It has requests on their way, which end with it.
        with contextlib.closing(part) as chunks:
            chunk = next(chunks)  # before anything is made: it may not be there
            with self._guard:
                if self._is_whole:
                    return False
                self._has_parts = True
            try:
                os.makedirs(os.path.dirname(self._place), exist_ok=True)
                descriptor = os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                try:
                    offset = start
                    while not self._stopped.is_set():
                        offset += write_and_digest(descriptor, chunk, offset, hasher)
                        if offset == end:
                            return True
                        chunk = next(chunks)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise storage_error("write", self._place, error) from error
        return False

    def _instead_of_parts(self, refused: PartRefusedError) -> None:
        with self._guard:
            if self._is_whole:
                return
            if self._has_parts:  # other parts were given: this one should have been
                raise refused.__cause__ or damaged(self._store, self._file, "its size is another one")
            self._is_whole = True
        self._fetch_whole()


def write_and_digest(descriptor: int, chunk: memoryview, offset: int, hasher: Hasher) -> int:
    """Writes a chunk to some place of an open file, and keeps no reference to it.

    Returns:
        Its length.

    Raises:
        OSError: It could not be written.
    """
    for start in range(0, len(chunk), _WRITTEN_BYTES):
        piece = chunk[start : start + _WRITTEN_BYTES]
        hasher.update(piece)
        written = os.pwrite(descriptor, piece, offset + start)
        while written < len(piece):
            written += os.pwrite(descriptor, piece[written:], offset + start + written)
    return len(chunk)
