"""Brings the files of a checkpoint to this machine: which threads fetch what, and how one file is fetched."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from holdfast.errors import StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.digest import FileHasher, is_known
from holdfast.persistence.download_checks import compare, damaged
from holdfast.persistence.download_parts import FileInParts, write_and_digest
from holdfast.persistence.from_kept import copy_kept
from holdfast.records import StoredFile
from holdfast.stores.base import BegunRead, Store
from holdfast.stores.broken_off import Waits
from holdfast.stores.local import LocalStore
from holdfast.stores.local_errors import storage_error
from holdfast.stores.local_write import write_new

_THREADS = 8
# Of smaller files each thread asks for several before it waits for the first: their time is the store's, not the bytes'.
_SMALL_BYTES = 64 * 1024
_SMALL_THREADS = 4
_ASKED_AT_ONCE = 16


def fetch_files(store: Store, target: LocalStore, files: Sequence[StoredFile], kept: Mapping[str, str]) -> None:
    """Fetches regular files into a directory that has none of them, several at once, each compared with its digest.

    Raises:
        DamagedCheckpointError: One is missing, or not what was reported.
        StorageError: The store or the local disk failed.
    """
    stopped = threading.Event()
    small: deque[StoredFile] = deque()
    larger = list(files)
    if store.capabilities.asks_ahead:
        small.extend(file for file in files if file.size_bytes < _SMALL_BYTES)
        larger = [file for file in files if file.size_bytes >= _SMALL_BYTES]
    # The largest first, so that no long one begins last.
    larger.sort(key=lambda file: -file.size_bytes)
    tasks = [task for file in larger for task in _tasks(store, target, file, kept, stopped)]
    small_threads = min(_SMALL_THREADS, -(-len(small) // _ASKED_AT_ONCE))
    threads = min(_THREADS, len(tasks)) + small_threads
    tasks += [functools.partial(_fetch_small, store, target, small, kept, stopped)] * small_threads
    if threads > 1:
        _run_all(tasks, threads, stopped)
    else:
        for task in tasks:
            task()


def _run_all(tasks: Sequence[Callable[[], None]], threads: int, stopped: threading.Event) -> None:
    waits = Waits()

    def run(task: Callable[[], None]) -> None:
        with waits.here():
            task()

    with ThreadPoolExecutor(threads, thread_name_prefix="holdfast-restore") as pool:
        try:
            futures = [pool.submit(run, task) for task in tasks]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stopped.set()
            waits.break_off()  # a silent server would keep them for minutes
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _tasks(
    store: Store, target: LocalStore, file: StoredFile, kept: Mapping[str, str], stopped: threading.Event
) -> list[Callable[[], None]]:
    """What several threads may do for one file."""
    whole = functools.partial(_fetch_file, store, target, file, kept)
    if file.path in kept or not FileInParts.suits(store, file):
        return [whole]
    place = str(target.local_path(layout.decode_path(file.path)))
    return FileInParts(store, place, file, stopped=stopped, fetch_whole=whole).tasks()


def _fetch_file(store: Store, target: LocalStore, file: StoredFile, kept: Mapping[str, str]) -> None:
    key = layout.decode_path(file.path)
    if copy_kept(kept, target, key, file):
        return
    hasher = FileHasher(like=file.digest)
    place = store.local_path(key)
    try:
        if place is not None:
            _copy_local(str(place), target, key, file, hasher)
        else:
            _copy_stream(store, target, key, file, hasher)
    except StoreNotFoundError as error:
        raise damaged(store, file, "missing") from error
    compare(store, file, hasher)


def _fetch_small(
    store: Store, target: LocalStore, files: deque[StoredFile], kept: Mapping[str, str], stopped: threading.Event
) -> None:
    """Takes files until none is left; several threads may share them.

    Args:
        stopped: Set where another task has failed: then nobody goes on, nor waits for what is asked for.
    """
    asked: deque[tuple[StoredFile, BegunRead]] = deque()
    root = str(target.local_path())  # once: for each of many files a path would cost as much as to digest it
    try:
        while (files or asked) and not stopped.is_set():
            if files and len(asked) < _ASKED_AT_ONCE:
                file = _next(files)
                if file is not None and not copy_kept(kept, target, layout.decode_path(file.path), file):
                    # Without a digest only its length can show that it has grown.
                    compares = file.digest is not None and is_known(file.digest)
                    expected = file.size_bytes if compares else None
                    asked.append((file, store.begin_read(layout.decode_path(file.path), expected)))
            elif asked:
                _write_small(store, root, *asked.popleft())
    finally:
        for _, begun in asked:
            begun.cancel()


def _next(files: deque[StoredFile]) -> StoredFile | None:
    try:
        return files.popleft()
    except IndexError:  # another thread has taken the last one
        return None


def _write_small(store: Store, root: str, file: StoredFile, begun: BegunRead) -> None:
    try:
        data = begun.wait()
    except StoreNotFoundError as error:
        raise damaged(store, file, "missing") from error
    if len(data) != file.size_bytes:
        raise damaged(store, file, f"{len(data)} bytes instead of {file.size_bytes}")
    hasher = FileHasher(like=file.digest)
    hasher.update(data)
    compare(store, file, hasher)
    place = f"{root}/{layout.decode_path(file.path)}"
    try:
        try:
            write_new(place, data, file.mode)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            write_new(place, data, file.mode)
    except OSError as error:
        raise storage_error("write", place, error) from error


def _copy_local(path: str, target: LocalStore, key: str, file: StoredFile, hasher: FileHasher) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error("read", path, error) from error
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes != file.size_bytes:
            raise damaged(target, file, f"{size_bytes} bytes instead of {file.size_bytes}")
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
                    size_bytes += write_and_digest(output.fileno(), chunk, size_bytes, hasher)
                    chunk = next(chunks, None)
                os.fchmod(output.fileno(), file.mode)
        except OSError as error:
            raise storage_error("write", place, error) from error
    if size_bytes != file.size_bytes:
        raise damaged(store, file, f"{size_bytes} bytes instead of {file.size_bytes}")
