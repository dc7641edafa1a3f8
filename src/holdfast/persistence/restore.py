"""One local copy of a remote checkpoint for all processes and threads of this machine that read it at once.

Each copy has a directory of its own below the cache::

    <key>/gate        locked alone, by whoever downloads, or is entering or leaving: short, but for the download
    <key>/readers     locked shared, by everyone who reads
    <key>/data/       the checkpoint; it appears by a rename, so it is whole or not there
    <key>/partial-*   a download; only the gate's holder has one, so any other is a dead process's
    <checkpoint>.wanted    locked shared by a node that may need copies of that checkpoint again: they stay

Two lock files rather than one that is converted: the kernel converts by unlocking first, and between the two
anybody may come in. All locks go with their process, so a killed one holds up nobody. Whoever removes a copy holds
the gate, sees that nobody reads, and removes the lock files too; who has opened a removed gate notices after locking
it, and begins again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from holdfast.errors import StorageError, WaitTimeoutError
from holdfast.persistence.download import copy_to as copy_to
from holdfast.persistence.download import fetch
from holdfast.persistence.private_place import make_private, user_place
from holdfast.persistence.verify import find_damage
from holdfast.records import Manifest
from holdfast.stores.base import Store
from holdfast.stores.local import LocalStore
from holdfast.stores.local_errors import storage_error
from holdfast.stores.local_lock import FileLock, try_lock
from holdfast.stores.local_tree import remove_tree

_LOG = logging.getLogger("holdfast")
DEFAULT_TIMEOUT_S = 3600.0
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05
_FIRST_NOTICE_S = 10.0
_NOTICE_EVERY_S = 60.0
_LEAVE_TIMEOUT_S = 5.0
_WANTED = ".wanted"


@contextlib.contextmanager
def shared_copy(
    store: Store,
    manifest: Manifest,
    *,
    include: Sequence[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    kept: Mapping[str, str] | None = None,
    on_download: Callable[[], None] | None = None,
) -> Iterator[Path]:
    """A verified local copy, shared with every other reader of this machine, gone when the last has left.

    Args:
        store: Rooted at the checkpoint.
        include: Only the files that match one of these patterns; readers share with those who ask for the same.
        cache_dir: Where copies lie; by default below the directory for temporary files.
        timeout_s: How long to wait for another process's download.
        kept: Where this machine may have files of it, by path; see `fetch`.
        on_download: Called where this call made the copy: only then was the store's content compared with the manifest just now.

    Raises:
        DamagedCheckpointError: A file is missing, or not what was reported.
        StorageError: The store or the local disk failed.
        WaitTimeoutError: Another process has not finished its download in time.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    make_private(cache)
    sweep(cache)
    copy = _Copy(cache / _copy_name(store, manifest, include))

    def download(directory: Path) -> None:
        fetch(store, manifest, directory, include=include, kept=kept)
        if on_download is not None:
            on_download()

    readers = copy.enter(
        download,
        lambda directory: not find_damage(LocalStore(directory), "", manifest, include=include),
        timeout_s,
        store.url,
    )
    try:
        yield copy.data
    finally:
        copy.leave(readers)


def default_cache_dir() -> Path:
    """Where the copies of this user's processes lie."""
    return user_place("restore")


class _Copy:
    """One checkpoint's place in the cache."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data = place / "data"
        self._gate = str(place / "gate")
        self._readers = str(place / "readers")

    def enter(
        self, download: Callable[[Path], None], is_whole: Callable[[Path], bool], timeout_s: float, what: str
    ) -> FileLock:
        """Returns the shared lock of a reader; `data` is whole and stays until it is released."""
        gate = self._wait_for_gate(timeout_s, what)
        try:
            if self.data.is_dir():
                self._discard_if_changed(is_whole)
            if not self.data.is_dir():
                self._download(download)
            # At once: whoever locks the readers out holds the gate, and that is us.
            readers = try_lock(self._readers, shared=True)
        except BaseException as error:
            self._clean_up(gate)
            if isinstance(error, OSError):
                raise storage_error("use the directory of copies", str(self.place), error) from error
            raise
        finally:
            gate.release()
        if readers is None:
            raise StorageError(f"Cannot lock {self._readers!r}: a program other than Holdfast holds it")
        return readers

    def leave(self, readers: FileLock) -> None:
        """Removes the copy if this was its last reader; what cannot be removed now, a later reader sweeps."""
        readers.release()
        deadline = time.monotonic() + _LEAVE_TIMEOUT_S
        while self.data.is_dir():
            # A gate that is locked while there is data is being entered or left, which takes no time. He who enters
            # will remove it when he leaves; he who leaves may have looked while we were still reading.
            try:
                if self.remove_if_unused() or time.monotonic() >= deadline:
                    return
            except (OSError, StorageError) as error:
                _LOG.warning("The copy of a checkpoint in %s could not be removed: %s", self.place, error)
                return
            time.sleep(_FIRST_PAUSE_S)

    def remove_if_unused(self) -> bool:
        """Removes all of it if nobody is at it; False where somebody holds the gate."""
        try:
            gate = try_lock(self._gate)
        except FileNotFoundError:  # somebody has just removed the place
            return True
        if gate is None:
            return False
        try:
            self._remove_if_unread(gate)
        finally:
            gate.release()
        return True

    def _clean_up(self, gate: FileLock) -> None:
        """Removes what a failed download left; the error to be seen is the download's."""
        try:
            self._remove_if_unread(gate)
        except (OSError, StorageError) as error:
            _LOG.warning("A failed download in %s could not be removed: %s", self.place, error)

    def _remove_if_unread(self, gate: FileLock) -> None:
        """Removes all of it unless somebody reads, or may want to; the gate is ours."""
        if not gate.is_at(self._gate) or (self.data.is_dir() and self._is_wanted()):
            return
        readers = try_lock(self._readers)
        if readers is None:
            return
        try:
            for entry in list(os.scandir(self.place)):
                if entry.name not in ("gate", "readers"):
                    self._remove(entry.path)
            os.unlink(self._readers)
            # The gate last: who locks it from now on sees that it is gone and makes a new one.
            os.unlink(self._gate)
            with contextlib.suppress(OSError):  # somebody has made a new gate already
                os.rmdir(self.place)
        finally:
            readers.release()

    def _discard_if_changed(self, is_whole: Callable[[Path], bool]) -> None:
        """A copy that nobody reads has waited to be wanted again, perhaps through a crash: it is compared once more."""
        readers = try_lock(self._readers)
        if readers is None:
            return
        try:
            if not is_whole(self.data):
                _LOG.warning("The copy of a checkpoint in %s was changed, and is made anew", self.place)
                self._remove(str(self.data))
        finally:
            readers.release()

    def _remove(self, path: str) -> None:
        # Renamed first: a death while files go must not leave a `data` that lacks some.
        doomed = self.place / f"partial-{uuid.uuid4().hex}"
        os.rename(path, doomed)
        remove_tree(str(doomed))

    def _is_wanted(self) -> bool:
        return not _remove_if_unlocked(f"{str(self.place).rpartition('-')[0]}{_WANTED}")

    def _download(self, download: Callable[[Path], None]) -> None:
        for entry in list(os.scandir(self.place)):
            if entry.name.startswith("partial-"):
                remove_tree(entry.path)  # the gate is ours, so its maker is dead
        partial = self.place / f"partial-{uuid.uuid4().hex}"
        os.mkdir(partial, 0o700)
        download(partial)
        # Dead before this line: a partial directory that the next comer removes. After it: a whole copy.
        os.rename(partial, self.data)

    def _wait_for_gate(self, timeout_s: float, what: str) -> FileLock:
        since_s = time.monotonic()
        next_notice_s = since_s + _FIRST_NOTICE_S
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                # Not `Path.mkdir(exist_ok=True)`, which fails where the place goes while it looks what is there.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.place, 0o700)
                gate = try_lock(self._gate)
            except FileNotFoundError:  # the last reader of an earlier copy has just removed the place
                continue
            except OSError as error:
                raise storage_error("lock", self._gate, error) from error
            if gate is not None:
                gate.write_text(f"process {os.getpid()}")
                return gate
            now_s = time.monotonic()
            if now_s - since_s >= timeout_s:
                raise WaitTimeoutError(
                    f"Waited {timeout_s:.0f} s for {self._holder()} to download {what!r}; end that process if it hangs"
                )
            if now_s >= next_notice_s:
                _LOG.warning("Waiting for %s to download %s, for %.0f s now", self._holder(), what, now_s - since_s)
                next_notice_s = now_s + _NOTICE_EVERY_S
            time.sleep(min(pause_s, max(0.0, since_s + timeout_s - now_s)))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _holder(self) -> str:
        try:
            return Path(self._gate).read_text(encoding="utf-8") or "another process"
        except OSError:
            return "another process"


def wanted_path(cache: Path, store: Store, checkpoint_id: str, created: str) -> str:
    """What a node locks (shared) for copies of a checkpoint to stay.

    Args:
        store: Rooted at the checkpoint.
    """
    return f"{cache}/{_checkpoint_name(store, checkpoint_id, created)}{_WANTED}"


def sweep(cache: Path) -> None:
    """Removes the copies that nobody reads or wants: those that dead processes have left."""
    try:
        entries = list(os.scandir(cache))
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _Copy(Path(entry.path)).remove_if_unused()
        for entry in entries:
            if entry.name.endswith(_WANTED):
                _remove_if_unlocked(entry.path)
    except (OSError, StorageError) as error:
        _LOG.warning("Old copies of checkpoints in %s could not be removed: %s", cache, error)


def _copy_name(store: Store, manifest: Manifest, include: Sequence[str] | None) -> str:
    chosen = None if include is None else sorted([include] if isinstance(include, str) else include)
    return f"{_checkpoint_name(store, manifest.id, manifest.created)}-{_hash(chosen)}"


def _checkpoint_name(store: Store, checkpoint_id: str, created: str) -> str:
    return _hash((store.url, checkpoint_id, created))


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _remove_if_unlocked(path: str) -> bool:
    """Whether no live process holds the lock; then the file is gone."""
    if not os.path.exists(path):
        return True
    lock = try_lock(path)
    if lock is None:
        return False
    try:
        os.unlink(path)
    finally:
        lock.release()
    return True
