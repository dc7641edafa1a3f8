"""Stores that count what is asked of them, and die or refuse where a test says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from holdfast.errors import StorageError
from holdfast.stores.base import Store

# What changes something in storage; a death between two of these is a death at the later one.
WRITES = frozenset(
    {
        "write", "create", "put_file", "adopt_file", "copy", "put_symlink", "make_directory", "rename", "delete",
        "delete_tree", "open_append", "sync", "append",
    }
)  # fmt: skip


class WatchedStore:
    """A store that tells a watch of each write before it happens; everything else passes through."""

    def __init__(self, store: Store, before: Callable[[str, str], None]) -> None:
        self._store = store
        self._before = before

    def child(self, key: str) -> WatchedStore:
        return WatchedStore(self._store.child(key), self._before)

    def open_append(self, key: str) -> Any:
        self._before("open_append", key)
        return _WatchedAppend(self._store.open_append(key), key, self._before)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:  # some of them may be gone when this process dies
            self.delete(key)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in WRITES:
            return found

        def watched(*args: Any, **options: Any) -> Any:
            self._before(name, str(args[0]))
            return found(*args, **options)

        return watched


class _WatchedAppend:
    def __init__(self, handle: Any, key: str, before: Callable[[str, str], None]) -> None:
        self._handle = handle
        self._key = key
        self._before = before

    def write(self, data: bytes) -> None:
        self._before("append", self._key)
        self._handle.write(data)

    def close(self) -> None:
        self._handle.close()


Store.register(WatchedStore)


def die_at(number: int) -> Callable[[str, str], None]:
    """A watch that kills this process, as SIGKILL does, before its `number`-th write (counted from 1)."""
    count = 0
    lock = threading.Lock()

    def before(_operation: str, _key: str) -> None:
        nonlocal count
        with lock:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return before


def refuse(when: Callable[[str, str], bool]) -> Callable[[str, str], None]:
    """A watch that fails the operations (by name and key) that `when` picks."""

    def before(operation: str, key: str) -> None:
        if when(operation, key):
            raise StorageError(f"refused by the test: {operation} {key}")

    return before
