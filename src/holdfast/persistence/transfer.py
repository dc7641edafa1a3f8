"""Brings one staged file into a store, and proves that it is the file that was reported."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from holdfast.errors import (
    CheckpointSourceError,
    ShardModifiedError,
    StorageError,
    StorageInterruptedError,
    StorageUnavailableError,
    StoreExistsError,
)
from holdfast.persistence import layout
from holdfast.persistence.digest import FileHasher, digest_fd
from holdfast.persistence.known_digests import KnownDigests
from holdfast.persistence.predecessor import Predecessor, Traces, no_predecessor, sample_of
from holdfast.persistence.retry import Retries, RetryPolicy
from holdfast.persistence.sources import REPLACED, open_source, source_of
from holdfast.records import StagedFile, StoredFile
from holdfast.stores.base import Store

if TYPE_CHECKING:
    from holdfast.persistence.kept import KeptFiles

# Below it a file is told of as a whole; a call per buffer would cost more than it tells.
_COUNTED_FROM_BYTES = 4 * 1024 * 1024


class UploadStopped(Exception):  # noqa: N818 - not an error of anything
    """The upload was told to stop; never leaves this package."""


@dataclass(frozen=True)
class FileTransfer:
    """What the files of one shard share on their way.

    Attributes:
        root: The shard's directory.
        prefix: The key that the files' keys begin with.
        adopt: Files may be hard-linked instead of copied.
        stop: Set when another file failed or the upload was cancelled.
        descriptors: Files that were handed over open, by path; they are read whatever lies in the directory now, and
            closed here.
        predecessor: Gives the checkpoint whose unchanged files need not be sent again, when a file's turn comes.
        known: Digests of files that need not be read again.
        linked: The paths of files that were taken over already.
        kept: Gets each file that is stored, open.
        traces: Told of each file whether it was stored, or its key was taken.
    """

    root: str
    store: Store
    prefix: str
    rank: int
    adopt: bool
    on_bytes: Callable[[int], None] | None
    retry: RetryPolicy
    stop: threading.Event
    descriptors: dict[str, int] = field(default_factory=dict)
    predecessor: Callable[[], Predecessor | None] = no_predecessor
    known: KnownDigests = field(default_factory=KnownDigests)
    linked: set[str] = field(default_factory=set)
    kept: KeptFiles | None = None
    traces: Traces = field(default_factory=Traces)

    def source(self, file: StagedFile) -> str:
        """Where the file lies on this machine."""
        return source_of(self.root, file)

    def key(self, file: StagedFile) -> str:
        """Where it goes."""
        path = layout.decode_path(file.path)
        return f"{self.prefix}/{path}" if self.prefix else path

    def let_go(self, file: StagedFile) -> None:
        """Closes a file that was handed over open."""
        descriptor = self.descriptors.pop(file.path, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Closes all that were handed over open; nothing reads them any more."""
        while self.descriptors:
            os.close(self.descriptors.popitem()[1])

    def receipt(self, file: StagedFile, digest: str | None) -> StoredFile:
        """What the receipt says of it."""
        return StoredFile(
            path=file.path,
            kind=file.kind,
            size_bytes=file.size_bytes,
            mode=file.mode,
            digest=digest,
            rank=self.rank,
            target=file.target,
        )


Step = Generator[None, None, StoredFile]
"""What is done with one file. It yields where its bytes are on their way and nothing is left but to wait for the store: meanwhile
the thread may begin others. It is to be run to its end, also when another one has failed."""


def store_file(transfer: FileTransfer, file: StagedFile) -> Step:
    """Stores one file, link or empty directory; safe to repeat on what passes by itself.

    Raises:
        ShardModifiedError: It is not, or did not stay, what was staged.
        CheckpointSourceError: It cannot be read.
        StorageError: The write failed for good.
        UploadStopped: The shard was given up.
    """
    if file.kind != "file":
        return (yield from _retried(transfer, file, _store_special))
    try:
        return (yield from _retried(transfer, file, _store_regular))
    finally:
        transfer.let_go(file)


def register_file(transfer: FileTransfer, file: StagedFile) -> Step:
    """Digests a file that lies in its final place; raises as `store_file`."""
    if file.kind != "file":
        return transfer.receipt(file, None)
    return (yield from _retried(transfer, file, _digest_in_place))


def _retried(transfer: FileTransfer, file: StagedFile, step: Callable[[FileTransfer, StagedFile], Step]) -> Step:
    retries: Retries | None = None
    while True:
        try:
            stored = yield from step(transfer, file)
        except (StorageError, OSError) as error:
            if isinstance(error, StorageUnavailableError | StorageInterruptedError):
                transfer.traces.unanswered.add(file.path)
            # A store removes what a failed put has written, or before the next try. So what a
            # retry finds at the key is another rank's, never our own remains.
            retries = retries or Retries(transfer.retry, transfer.stop)
            if retries.wait_after(error, f"Storing {transfer.source(file)!r}"):
                continue
            if transfer.stop.is_set():
                raise UploadStopped from error
            if isinstance(error, OSError):
                _raise_unreadable(transfer.source(file), error)
            raise
        else:
            transfer.traces.unanswered.discard(file.path)
            return stored


def _store_special(transfer: FileTransfer, file: StagedFile) -> Step:
    yield from ()
    key = transfer.key(file)
    try:
        if file.kind == "symlink":
            transfer.store.put_symlink(key, layout.decode_path(file.target or ""))
        else:
            transfer.store.make_directory(key)
    except StoreExistsError:
        # Another rank's, of another kind: the merge of the receipts names both.
        return transfer.receipt(file, None)
    return transfer.receipt(file, None)


def _store_regular(transfer: FileTransfer, file: StagedFile) -> Step:
    source = transfer.source(file)
    held = transfer.descriptors.get(file.path)
    descriptor = _open(transfer, file) if held is None else held
    try:
        # A link changes the times of the inode, so of a file that was taken over only size and mtime still tell; and so
        # does the removal of one that was handed over open.
        is_linked = file.path in transfer.linked
        status = os.fstat(descriptor)
        is_removed = held is not None and status.st_nlink < file.num_links
        _check_unmodified(source, file, status, with_ctime=not is_linked and not is_removed)
        progress = _Progress(transfer, file)
        try:
            # Where nothing can be shared, everything is read to be sent.
            able = transfer.store.capabilities
            can_share = able.links or able.copies
            known = transfer.known.before_reading(descriptor, status) if can_share else None
            digest, is_shared = _share(transfer, file, descriptor, progress)
            if digest is not None and not is_shared:
                progress.take_back()
                progress = _Progress(transfer, file)
            # What has other names already may be written to through them: that is copied.
            if not is_linked and not is_shared and transfer.adopt and status.st_nlink == 1 and file.source is None:
                is_linked = _adopt(transfer, file, source if held is None else held, descriptor)
            if is_linked or is_shared:
                transfer.traces.written.add(file.path)
            else:
                digest = yield from _copy(transfer, file, descriptor, progress)
            if digest is None:
                digest = digest_fd(descriptor, file.size_bytes, progress.hasher)
            status = os.fstat(descriptor)
            is_removed = held is not None and status.st_nlink < file.num_links
            _check_unmodified(source, file, status, with_ctime=not is_linked and not is_removed)
            if known is not None:
                transfer.known.remember(known, status, digest)
        except BaseException:
            progress.take_back()
            raise
        if able.copies and (sample := sample_of(descriptor, file.size_bytes)) is not None:
            transfer.traces.samples[file.path] = sample
        progress.complete()
        if transfer.kept is not None:
            transfer.kept.add(file, descriptor)
    finally:
        if held is None:
            os.close(descriptor)
    return transfer.receipt(file, digest)


def _share(transfer: FileTransfer, file: StagedFile, descriptor: int, progress: _Progress) -> tuple[str | None, bool]:
    """The file's digest where all of it was read, and whether the store has it now by a link to an equal one, or a copy of it."""
    digest: str | None = None
    last: Predecessor | None = None
    # Twice: while a large file is read, retention may let go of the one that it was to be shared with.
    for _ in range(0 if file.path in transfer.linked else 2):
        predecessor = transfer.predecessor()
        if predecessor is None or predecessor is last:
            break
        last = predecessor
        wanted = predecessor.candidate(file, descriptor)
        if wanted is None:
            break
        digest = (
            digest
            or transfer.known.find(os.fstat(descriptor))
            or digest_fd(descriptor, file.size_bytes, progress.hasher)
        )
        if digest != wanted:
            break
        try:
            if predecessor.share(file, transfer.key(file)):
                return digest, True
        except StoreExistsError:
            break
    return digest, False


def _adopt(transfer: FileTransfer, file: StagedFile, source: str | int, descriptor: int) -> bool:
    """Whether the store has the file by a hard link now; False: copy it (or digest it, where it is there already)."""
    key = transfer.key(file)
    try:
        if not transfer.store.adopt_file(key, source):
            return False
    except StoreExistsError:
        return False
    place = transfer.store.local_path(key)
    if place is not None and os.lstat(place).st_ino != os.fstat(descriptor).st_ino:
        raise _modified(transfer.source(file), "it was replaced by another file")
    transfer.linked.add(file.path)
    return True


def _copy(
    transfer: FileTransfer, file: StagedFile, descriptor: int, progress: _Progress
) -> Generator[None, None, str | None]:
    """The digest of the stored copy; None where the key is taken and nothing was read."""
    key, store = transfer.key(file), transfer.store
    try:
        wait = store.begin_put_file(key, descriptor, size_bytes=file.size_bytes, mode=file.mode, hasher=progress.hasher)
        if wait is None:
            store.put_file(key, descriptor, size_bytes=file.size_bytes, mode=file.mode, hasher=progress.hasher)
        else:
            yield
            wait()
    except StoreExistsError:
        transfer.traces.found.add(file.path)
        return None
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENODATA:
            raise _modified(transfer.source(file), "it became shorter") from error
        raise
    transfer.traces.written.add(file.path)
    return progress.hasher.text()


def _digest_in_place(transfer: FileTransfer, file: StagedFile) -> Step:
    yield from ()
    source = transfer.source(file)
    if file.source is not None:
        raise CheckpointSourceError(
            f"{file.path!r} is in the memory of a worker, which does not stay; save into a directory of the run with files: "
            "save_state(..., in_memory=False)"
        )
    descriptor = _open(transfer, file)
    try:
        _check_unmodified(source, file, os.fstat(descriptor), with_ctime=True)
        digest = digest_fd(descriptor, file.size_bytes)
        _check_unmodified(source, file, os.fstat(descriptor), with_ctime=True)
    finally:
        os.close(descriptor)
    return transfer.receipt(file, digest)


class _Progress:
    """Digests one try of one file, tells of its bytes as they come, and ends it early when the shard is given up."""

    def __init__(self, transfer: FileTransfer, file: StagedFile) -> None:
        self.hasher = FileHasher(self._count if file.size_bytes >= _COUNTED_FROM_BYTES else None)
        self._on_bytes = transfer.on_bytes
        self._stop = transfer.stop
        self._size_bytes = file.size_bytes
        self._told_bytes = 0

    def _count(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise UploadStopped
        if self._on_bytes is not None:
            self._told_bytes += num_bytes
            self._on_bytes(num_bytes)

    def complete(self) -> None:
        if self._on_bytes is not None and self._told_bytes < self._size_bytes:
            self._on_bytes(self._size_bytes - self._told_bytes)

    def take_back(self) -> None:
        if self._on_bytes is not None and self._told_bytes:
            self._on_bytes(-self._told_bytes)


def _open(transfer: FileTransfer, file: StagedFile) -> int:
    try:
        return open_source(transfer.root, file)
    except OSError as error:
        if error.errno in REPLACED:
            raise _modified(transfer.source(file), "it is gone") from error
        raise


def _check_unmodified(path: str, file: StagedFile, status: os.stat_result, *, with_ctime: bool) -> None:
    if (
        status.st_mtime_ns == file.mtime_ns
        and status.st_size == file.size_bytes
        and (status.st_ctime_ns == file.ctime_ns or not with_ctime)
        and stat.S_ISREG(status.st_mode)
    ):
        return
    if not stat.S_ISREG(status.st_mode):
        raise _modified(path, "it is no regular file any more")
    if status.st_size != file.size_bytes:
        raise _modified(path, f"its size went from {file.size_bytes} to {status.st_size} bytes")
    raise _modified(path, "its time stamps moved")


def _modified(path: str, how: str) -> ShardModifiedError:
    return ShardModifiedError(
        f"{path!r} changed after it was reported and before it was stored: {how}; "
        f"leave the directory alone until the checkpoint is committed"
    )


def _raise_unreadable(path: str, error: OSError) -> NoReturn:
    if error.errno == errno.ENODATA:
        raise _modified(path, "it became shorter") from error
    raise CheckpointSourceError(
        f"{path!r} cannot be read: {os.strerror(error.errno or 0)}; it was to be stored in a checkpoint"
    ) from error
