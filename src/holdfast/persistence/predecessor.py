"""The checkpoint before: files that did not change since are not written again.

On a disk with hard links frozen weights, tokenizers and the like then cost one reading, for the digest, and no space. Whoever changes
such a file in place changes it in every checkpoint that shares it; verification finds it in all of them. A store that can copy by
itself is asked to: that costs a request, and no byte that is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import xxhash

from holdfast.errors import StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.digest import is_known
from holdfast.persistence.verify import is_untouched
from holdfast.records import Manifest, StagedFile, StoredFile
from holdfast.stores.base import Store

# Below it a copy costs no more than a link.
_SHARED_FROM_BYTES = 16 * 1024
# Below it sending is as quick as asking for a copy.
_COPIED_FROM_BYTES = 1 << 20
_SAMPLE_BYTES = 4096


@dataclass
class Traces:
    """What one checkpoint's shards have come upon, for its commit and for the checkpoint after it, by record path. Safe for threads.

    Attributes:
        written: Files that one of them has stored.
        found: Files that something else had been stored in the place of: another rank's, or a stranger's.
        samples: Of files that the store could copy by itself, what `sample_of` says.
        unanswered: Files of which a request had no clear answer: it may have happened, or happen yet.
        tags: What tells the stored files from whatever may lie there later, once the store has confirmed them.
    """

    written: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    samples: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def strange(self) -> list[str]:
        """What lies there and was not stored by any of them, once all are done."""
        return sorted(self.found - self.written)


class Predecessor(Protocol):
    """A committed checkpoint whose files may serve for the next one."""

    def candidate(self, file: StagedFile, descriptor: int) -> str | None:
        """The digest that an open file must have for ours to serve; None where a few samples show that it differs.

        Reading all of it for its digest is worth while only then: what has changed must be read again to be stored.
        """

    def share(self, file: StagedFile, key: str) -> bool:
        """Puts our file at `key`, too; False where that cannot be done.

        Raises:
            StoreExistsError: Something lies there.
        """


def no_predecessor() -> None:
    """For a checkpoint that has none."""


def sample_of(descriptor: int, size_bytes: int) -> str | None:
    """What tells two versions of an open file apart, nearly always; None for a file that is too small to be copied by a store."""
    if size_bytes < _COPIED_FROM_BYTES:
        return None
    return xxhash.xxh3_128_hexdigest(b"".join(_samples(descriptor, size_bytes)))


def predecessor_of(
    store: Store,
    manifest: Manifest,
    statuses: Mapping[str, os.stat_result] | None,
    traces: Traces | None,
    is_kept: Callable[[Manifest], bool],
) -> Predecessor | None:
    """The checkpoint as one whose files may serve for the next; None where the store can neither link nor copy.

    Args:
        store: Rooted at the run's directory.
        manifest: What the checkpoint consists of.
        statuses: What stat said of its files when they were known to be right, by path; None where there is no stat.
        traces: What storing it has left; None where this driver did not.
        is_kept: Whether retention has not let go of it.
    """
    if store.capabilities.links and statuses is not None:
        return LinkedPredecessor(store, manifest, statuses)
    if store.capabilities.copies and traces is not None:
        return CopiedPredecessor(store, manifest, traces, is_kept)
    return None


class CopiedPredecessor:
    """A checkpoint that this driver has put into a store that can copy by itself; see `predecessor_of`."""

    def __init__(self, store: Store, manifest: Manifest, traces: Traces, is_kept: Callable[[Manifest], bool]) -> None:
        self._store = store
        self._manifest = manifest
        self._is_kept = is_kept
        self._files = {file.path: file for file in manifest.files if file.path in traces.tags}
        self._traces = traces

    def candidate(self, file: StagedFile, descriptor: int) -> str | None:
        """See `Predecessor`."""
        ours = self._files.get(file.path)
        if ours is None or ours.digest is None or not is_known(ours.digest) or ours.size_bytes != file.size_bytes:
            return None
        sample = self._traces.samples.get(file.path)
        return ours.digest if sample is not None and sample == sample_of(descriptor, file.size_bytes) else None

    def share(self, file: StagedFile, key: str) -> bool:
        """See `Predecessor`. Dying right after it leaves an object that no manifest names, as after any upload.

        What is copied is what was listed when it was committed: whatever has been written there since has another tag.
        """
        source = f"{self._manifest.name}/{layout.decode_path(file.path)}"
        if not self._store.copy(source, key, file.size_bytes, self._traces.tags[file.path]):
            return False
        if self._is_kept(self._manifest):
            return True
        # Meanwhile it may have been deleted, and its name have come to stand for another checkpoint.
        self._store.delete(key)
        return False


class LinkedPredecessor:
    """A checkpoint on a disk of this machine, as it was when it was committed or verified.

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
        """See `Predecessor`."""
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
            if _samples(descriptor, file.size_bytes) != _samples(other, file.size_bytes):
                return None
        except OSError:
            return None
        finally:
            os.close(other)
        return ours.digest

    def share(self, file: StagedFile, key: str) -> bool:
        """See `Predecessor`; False also where our file was touched."""
        ours = self._files[file.path]
        if not self._is_untouched(ours):
            return False
        try:
            # Dying on the next line leaves a second name for bytes that nobody changes.
            if not self._store.adopt_file(key, self._path(ours)):
                return False
            if os.lstat(str(self._store.local_path(key))).st_ino == self._statuses[file.path].st_ino:
                return True
        except StoreNotFoundError:  # retention has just taken it away
            return False
        # Retention has, and another checkpoint has its name now.
        self._store.delete(key)
        return False

    def _path(self, file: StoredFile) -> str:
        return f"{self._store.local_path(self._name)}/{layout.decode_path(file.path)}"

    def _is_untouched(self, file: StoredFile) -> bool:
        then = self._statuses.get(file.path)
        try:
            return then is not None and is_untouched(then, os.lstat(self._path(file)))
        except OSError:
            return False


def _samples(descriptor: int, size_bytes: int) -> list[bytes]:
    offsets = (0, size_bytes // 2, size_bytes - _SAMPLE_BYTES)
    return [os.pread(descriptor, _SAMPLE_BYTES, offset) for offset in offsets]
