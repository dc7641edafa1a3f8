"""Copies of a remote checkpoint that stay though nobody reads them: the next attempt may begin where this one did.

The node holds a lock beside the copies; whoever would remove one looks at it. Should the node die, the kernel takes the lock
back, and the next reader of anything removes the copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from holdfast.persistence import layout
from holdfast.persistence.private_place import make_private
from holdfast.persistence.restore import default_cache_dir, shared_copy, sweep, wanted_path
from holdfast.records import CommittedCheckpoint, Manifest
from holdfast.stores.base import Store
from holdfast.stores.local_lock import FileLock, try_lock

_TRIES = 20
_PAUSE_S = 0.005
# For another process's download: the driver has its workers to start, and can read the store itself.
_FETCH_TIMEOUT_S = 30.0


class KeptCopies:
    """The node's wish that copies of one checkpoint stay.

    Attributes:
        name: The checkpoint's.
        places: Where the files of the copy of all of it lie, by path, once it was fetched.
    """

    def __init__(self, store: Store, name: str, cache: Path, lock: FileLock) -> None:
        self.name = name
        self.places: dict[str, str] = {}
        self._store = store
        self._cache = cache
        self._lock = lock

    @classmethod
    def of(
        cls, store: Store, checkpoint: CommittedCheckpoint, has_room: Callable[[str, int], bool]
    ) -> KeptCopies | None:
        """Has copies of a checkpoint stay from now on; None where they would take too much.

        Args:
            store: Rooted at the checkpoint.
            has_room: Whether so many bytes may be kept in a directory.

        Raises:
            StorageError: Others can write where copies lie.
            OSError: It cannot be written there.
        """
        cache = default_cache_dir()
        make_private(cache)
        if not has_room(str(cache), checkpoint.size_bytes):
            return None
        for _ in range(_TRIES):
            lock = try_lock(wanted_path(cache, store, checkpoint.id, checkpoint.created), shared=True)
            if lock is not None:
                return cls(store, checkpoint.name, cache, lock)
            time.sleep(_PAUSE_S)  # somebody looks whether a dead node left it
        return None

    def fetch(self, manifest: Manifest) -> bool:
        """Has a copy of all of it lie here; False where there was one already, which says nothing of what the store holds.

        Raises:
            DamagedCheckpointError: A file is missing, or not what was reported.
            StorageError: The store or the local disk failed.
            WaitTimeoutError: Another process is still downloading it.
        """
        downloads: list[None] = []
        with shared_copy(
            self._store, manifest, timeout_s=_FETCH_TIMEOUT_S, on_download=lambda: downloads.append(None)
        ) as directory:
            places = {
                file.path: f"{directory}/{layout.decode_path(file.path)}"
                for file in manifest.files
                if file.kind == "file"
            }
        # A name that is no UTF-8 cannot be sent to a worker, which then fetches that file.
        self.places = {path: place for path, place in places.items() if _is_text(place)}
        return bool(downloads)

    def release(self) -> None:
        """Copies that nobody reads are removed; what cannot be removed now, a later reader sweeps."""
        self._lock.release()
        sweep(self._cache)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
