"""The checkpoint before: files that did not change since are stored once, by a hard link.

Frozen weights, tokenizers and the like then cost one reading, for the digest, and no space. Whoever changes such a file
in place changes it in every checkpoint that shares it; verification finds it in all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from holdfast.errors import StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.digest import is_known
from holdfast.persistence.verify import is_untouched
from holdfast.records import Manifest, StagedFile, StoredFile
from holdfast.stores.base import Store

# Below it a copy costs no more than a link.
_SHARED_FROM_BYTES = 16 * 1024
_SAMPLE_BYTES = 4096


class Predecessor:
    """A committed checkpoint on this machine, as it was when it was committed or verified.

    Args:
        store: Rooted at the run's directory.
        manifest: What it consists of.
        statuses: What stat said of its files then, by path.
    """

    def __init__(self, store: Store, manifest: Manifest, statuses: Mapping[str, os.stat_result]) -> None:
        self._store = store
        self._name = manifest.name
        self._files = {file.path: file for file in manifest.files if file.size_bytes >= _SHARED_FROM_BYTES}
        self._statuses = statuses

    def candidate(self, file: StagedFile, descriptor: int) -> str | None:
        """The digest that an open file must have to be shared; None where a few samples show that it differs.

        Reading all of it for its digest is worth while only then: what has changed must be read again to be copied.
        """
        ours = self._files.get(file.path)
        if ours is None or ours.kind != "file" or ours.digest is None or not is_known(ours.digest):
            return None
        if ours.size_bytes != file.size_bytes or ours.mode != file.mode or not self._is_untouched(ours):
            return None
        try:
            other = os.open(self._path(ours), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            for offset in (0, file.size_bytes // 2, file.size_bytes - _SAMPLE_BYTES):
                if os.pread(descriptor, _SAMPLE_BYTES, offset) != os.pread(other, _SAMPLE_BYTES, offset):
                    return None
        except OSError:
            return None
        finally:
            os.close(other)
        return ours.digest

    def share(self, file: StagedFile, key: str) -> bool:
        """Puts a link to our file at `key`; False where that cannot be done, or our file was touched.

        Raises:
            StoreExistsError: Something lies there.
        """
        ours = self._files[file.path]
        if not self._is_untouched(ours):
            return False
        try:
            # Dying on the next line leaves a second name for bytes that nobody changes.
            return self._store.adopt_file(key, self._path(ours))
        except StoreNotFoundError:  # retention has just taken it away
            return False

    def _path(self, file: StoredFile) -> str:
        return f"{self._store.local_path(self._name)}/{layout.decode_path(file.path)}"

    def _is_untouched(self, file: StoredFile) -> bool:
        then = self._statuses.get(file.path)
        try:
            return then is not None and is_untouched(then, os.lstat(self._path(file)))
        except OSError:
            return False


def predecessor_of(
    store: Store, manifest: Manifest, statuses: Mapping[str, os.stat_result] | None
) -> Predecessor | None:
    """The checkpoint as one whose files can be shared; None where the store has no hard links, or no stat."""
    if statuses is None or not store.capabilities.links:
        return None
    return Predecessor(store, manifest, statuses)
