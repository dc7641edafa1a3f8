"""Writes a checkpoint's files into a local directory, each compared with its digest on the way."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from holdfast.errors import DamagedCheckpointError, StorageError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.digest import FileHasher, is_known
from holdfast.persistence.verify import select
from holdfast.records import Manifest, StoredFile
from holdfast.stores.base import Store
from holdfast.stores.local import LocalStore
from holdfast.stores.local_copy import copy_bytes
from holdfast.stores.local_errors import storage_error
from holdfast.stores.local_write import write_new

_LOG = logging.getLogger("holdfast")
_THREADS = 8
# As `stores.local_copy` says.
_WRITTEN_BYTES = 128 * 1024
_PARALLEL_FROM = 2
# Of smaller files each thread asks for several before it waits for the first: their time is the store's, not the bytes'.
_SMALL_BYTES = 64 * 1024
_SMALL_THREADS = 4
_ASKED_AT_ONCE = 16


def fetch(
    store: Store,
    manifest: Manifest,
    directory: Path,
    *,
    include: Sequence[str] | None = None,
    kept: Mapping[str, str] | None = None,
) -> None:
    """Fills a directory that is empty, and that nobody takes for a checkpoint yet.

    Holdfast's own files come along where all files do, so that the copy can be verified again.

    Args:
        store: Rooted at the checkpoint.
        include: Only the files that match one of these patterns.
        kept: Where this machine may have files of it, by path. What proves to be the same by its digest is copied from there.

    Raises:
        DamagedCheckpointError: A file is missing, or not what was reported.
        StorageError: The store or the local disk failed.
    """
    kept = kept or {}
    files = select(manifest.files, include)
    target = LocalStore(directory)
    regular = [file for file in files if file.kind == "file"]
    small: deque[StoredFile] = deque()
    if store.capabilities.asks_ahead:
        small.extend(file for file in regular if file.size_bytes < _SMALL_BYTES)
        regular = [file for file in regular if file.size_bytes >= _SMALL_BYTES]
    if len(regular) + len(small) < _PARALLEL_FROM:
        for file in regular:
            _fetch_file(store, target, file, kept)
        _fetch_small(store, target, small, kept, threading.Event())
    else:
        _fetch_all(store, target, regular, small, kept)
    for file in files:
        if file.kind == "directory":
            target.make_directory(layout.decode_path(file.path))
    # Links last: no file is ever written through one.
    for file in files:
        if file.kind == "symlink":
            target.put_symlink(layout.decode_path(file.path), layout.decode_path(file.target or ""))
    own = [layout.METADATA] if include is not None else [layout.METADATA, layout.MANIFEST]
    for name in own:
        try:
            target.write(name, store.read(name))
        except StoreNotFoundError:
            continue


def copy_to(
    store: Store,
    manifest: Manifest,
    directory: Path,
    *,
    include: Sequence[str] | None = None,
    kept: Mapping[str, str] | None = None,
) -> None:
    """Copies a checkpoint, verified, into a directory.

    A directory that does not exist appears whole, in one step. Into one that exists each file appears whole;
    other files in it stay.

    Args:
        store: Rooted at the checkpoint.
        include: Only the files that match one of these patterns.
        kept: As for `fetch`.

    Raises:
        DamagedCheckpointError: A file is missing, or not what was reported.
        StorageError: The store or the local disk failed.
    """
    if os.path.lexists(directory) and not directory.is_dir():
        raise StorageError(f"Cannot copy the checkpoint to {str(directory)!r}: it is a file; give a directory")
    with _scratch_directory(directory) as scratch:
        fetch(store, manifest, scratch, include=include, kept=kept)
        try:
            # Dead before this line: a hidden directory beside the target. After it: the whole checkpoint.
            os.rename(scratch, directory)
        except OSError as error:
            if not directory.is_dir():
                raise storage_error("copy the checkpoint to", str(directory), error) from error
            _merge(scratch, directory)


@contextlib.contextmanager
def _scratch_directory(directory: Path) -> Iterator[Path]:
    """A new directory on the same file system, that is gone afterwards unless it was renamed."""
    parent = directory if directory.is_dir() else directory.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".holdfast-copy-", dir=parent))
        # `mkdtemp` lets nobody else in; the result is as open as any directory that the user makes.
        os.chmod(scratch, 0o777 & ~_umask())
    except OSError as error:
        raise storage_error("copy the checkpoint to", str(directory), error) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    """The process's umask; reading it means setting it, so the way that does not is tried first."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass  # no /proc on this system
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _merge(source: Path, directory: Path) -> None:
    """Moves all files of one directory into another, over what has the same names."""
    try:
        # While files of two checkpoints are mixed, no manifest may say that this is one of them.
        (directory / layout.MANIFEST).unlink(missing_ok=True)
        for parent, directories, files in os.walk(source):
            place = directory / os.path.relpath(parent, source)
            for name in directories:
                found = Path(parent, name)
                if found.is_symlink():
                    files.append(name)
                else:
                    (place / name).mkdir(exist_ok=True)
            for name in files:
                if parent != str(source) or name != layout.MANIFEST:
                    # Dead at any of these: each name has the old file or the new one, whole.
                    os.replace(os.path.join(parent, name), place / name)
        if (source / layout.MANIFEST).exists():
            os.replace(source / layout.MANIFEST, directory / layout.MANIFEST)
    except OSError as error:
        raise storage_error(
            "copy the checkpoint to", error.filename2 or error.filename or str(directory), error
        ) from error


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


def _fetch_file(store: Store, target: LocalStore, file: StoredFile, kept: Mapping[str, str]) -> None:
    key = layout.decode_path(file.path)
    if _copy_kept(kept, target, key, file):
        return
    hasher = FileHasher(like=file.digest)
    place = store.local_path(key)
    try:
        if place is not None:
            _copy_local(str(place), target, key, file, hasher)
        else:
            _copy_stream(store, target, key, file, hasher)
    except StoreNotFoundError as error:
        raise _damaged(store, file, "missing") from error
    _compare(store, file, hasher)


def _fetch_all(
    store: Store, target: LocalStore, regular: list[StoredFile], small: deque[StoredFile], kept: Mapping[str, str]
) -> None:
    """Fetches several files at once, the largest first, and the small ones by threads of their own."""
    regular.sort(key=lambda file: -file.size_bytes)
    small_threads = min(_SMALL_THREADS, len(small))
    failed = threading.Event()
    threads = min(_THREADS, len(regular)) + small_threads
    with ThreadPoolExecutor(threads, thread_name_prefix="holdfast-restore") as pool:
        futures = [pool.submit(_fetch_file, store, target, file, kept) for file in regular]
        futures += [pool.submit(_fetch_small, store, target, small, kept, failed) for _ in range(small_threads)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            failed.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _fetch_small(
    store: Store, target: LocalStore, files: deque[StoredFile], kept: Mapping[str, str], failed: threading.Event
) -> None:
    """Takes files until none is left; several threads may share them.

    Args:
        failed: Set where one of the threads has failed: then nobody goes on, nor waits for what is asked for.
    """
    asked: deque[tuple[StoredFile, Callable[[], bytes | memoryview]]] = deque()
    try:
        while (files or asked) and not failed.is_set():
            if files and len(asked) < _ASKED_AT_ONCE:
                file = _next(files)
                if file is not None and not _copy_kept(kept, target, layout.decode_path(file.path), file):
                    asked.append((file, store.begin_read(layout.decode_path(file.path))))
            elif asked:
                _write_small(store, target, *asked.popleft())
    except BaseException:
        failed.set()
        raise


def _next(files: deque[StoredFile]) -> StoredFile | None:
    try:
        return files.popleft()
    except IndexError:  # another thread has taken the last one
        return None


def _write_small(store: Store, target: LocalStore, file: StoredFile, wait: Callable[[], bytes | memoryview]) -> None:
    try:
        data = wait()
    except StoreNotFoundError as error:
        raise _damaged(store, file, "missing") from error
    if len(data) != file.size_bytes:
        raise _damaged(store, file, f"{len(data)} bytes instead of {file.size_bytes}")
    hasher = FileHasher(like=file.digest)
    hasher.update(data)
    _compare(store, file, hasher)
    place = str(target.local_path(layout.decode_path(file.path)))
    try:
        try:
            write_new(place, data, file.mode)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            write_new(place, data, file.mode)
    except OSError as error:
        raise storage_error("write", place, error) from error


def _compare(store: Store, file: StoredFile, hasher: FileHasher) -> None:
    if file.digest is not None and is_known(file.digest) and hasher.text() != file.digest:
        raise _damaged(store, file, f"its content changed: {hasher.text()} instead of {file.digest}")


def _copy_kept(kept: Mapping[str, str], target: LocalStore, key: str, file: StoredFile) -> bool:
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


def _copy_local(path: str, target: LocalStore, key: str, file: StoredFile, hasher: FileHasher) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error("read", path, error) from error
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes != file.size_bytes:
            raise _damaged(target, file, f"{size_bytes} bytes instead of {file.size_bytes}")
        target.put_file(key, descriptor, size_bytes=size_bytes, mode=file.mode, hasher=hasher)
    finally:
        os.close(descriptor)


def _copy_stream(store: Store, target: LocalStore, key: str, file: StoredFile, hasher: FileHasher) -> None:
    place = str(target.local_path(key))
    size_bytes = 0
    # A generator of an object store has requests on their way, which end with it.
    with contextlib.closing(store.chunks(key, file.size_bytes)) as chunks:
        chunk = next(chunks, None)  # before anything is made: it may not be there
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "xb", buffering=0) as output:
                while chunk is not None:
                    for start in range(0, len(chunk), _WRITTEN_BYTES):
                        part = chunk[start : start + _WRITTEN_BYTES]
                        hasher.update(part)
                        written = output.write(part)
                        while written < len(part):
                            written += output.write(part[written:])
                    size_bytes += len(chunk)
                    chunk = next(chunks, None)
                os.fchmod(output.fileno(), file.mode)
        except OSError as error:
            raise storage_error("write", place, error) from error
    if size_bytes != file.size_bytes:
        raise _damaged(store, file, f"{size_bytes} bytes instead of {file.size_bytes}")


def _damaged(store: Store, file: StoredFile, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"The checkpoint {store.url!r} is not what was reported: {file.path}: {reason}; use an older one"
    )
