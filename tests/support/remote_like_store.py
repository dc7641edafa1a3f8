"""A store that can do no more than an object store can; several processes may use one at once."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from holdfast.errors import StorageError, StorageUnavailableError, StoreExistsError, StoreNotFoundError
from holdfast.stores.base import AppendHandle, Capabilities, Hasher, Store, StoreEntry, StoreLock
from holdfast.stores.local import LocalStore

_UPLOADS = ".uploads"


class RemoteLikeStore(Store):
    """Objects in a directory, without paths, renames, appends, locks or links; each put is whole or not there."""

    def __init__(self, root: str | os.PathLike[str], prefix: str = "") -> None:
        self._root = os.fspath(root)
        self._prefix = prefix
        self._store = LocalStore(self._root)

    @property
    def url(self) -> str:
        return f"remote-like://{self._root}/{self._prefix}".rstrip("/")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            atomic_rename=False,
            exclusive_create=True,
            append=False,
            durable_writes=True,
            kernel_lock=False,
            links=False,
            copies=True,
        )

    def child(self, key: str) -> RemoteLikeStore:
        return RemoteLikeStore(self._root, self._key(key))

    def local_path(self, key: str = "") -> Path | None:
        return None

    def prepare(self) -> None:
        self._store.prepare()

    def exists(self, key: str) -> bool:
        return self._store.exists(self._key(key))

    def read(self, key: str) -> bytes:
        return self._store.read(self._key(key))

    def open_read(self, key: str) -> BinaryIO:
        return self._store.open_read(self._key(key))

    def write(self, key: str, data: bytes) -> None:
        self._store.write(self._key(key), data)

    def create(self, key: str, data: bytes) -> None:
        self._store.create(self._key(key), data)

    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        if self.exists(key):
            raise StoreExistsError(f"{key!r} exists")
        upload = f"{_UPLOADS}/{uuid.uuid4().hex}"
        self._store.put_file(upload, source, size_bytes=size_bytes, mode=0o644, hasher=hasher)
        try:
            self._store.adopt_file(self._key(key), str(self._store.local_path(upload)))
        finally:
            self._store.delete(upload)

    def adopt_file(self, key: str, path: str) -> bool:
        if self.exists(key):
            raise StoreExistsError(f"{key!r} exists")
        return False

    def confirm(self, directory: str, sizes: Mapping[str, int]) -> Mapping[str, str]:
        found = {key: self._tag(f"{directory}/{key}") for key in sizes}
        if any(len(self.read(f"{directory}/{key}")) != size_bytes for key, size_bytes in sizes.items()):
            raise StorageError("a file has another size")
        return found

    def copy(self, source: str, target: str, size_bytes: int, tag: str) -> bool:
        if not self.exists(source) or self._tag(source) != tag:
            return False
        self.create(target, self.read(source))
        return True

    def _tag(self, key: str) -> str:
        try:
            return hashlib.sha256(self.read(key)).hexdigest()
        except StoreNotFoundError as error:
            raise StorageUnavailableError(str(error)) from error

    def put_symlink(self, key: str, target: str) -> None:
        return

    def make_directory(self, key: str) -> None:
        return

    def list(self, key: str = "", *, recursive: bool = False) -> Iterator[StoreEntry]:
        skip = len(self._prefix) + 1 if self._prefix else 0
        for entry in self._store.list(self._key(key), recursive=recursive):
            if entry.key.startswith(_UPLOADS) or entry.key.endswith(".tmp"):
                continue
            yield StoreEntry(entry.key[skip:], entry.size_bytes, entry.is_directory, entry.mtime_s)

    def rename(self, source: str, target: str) -> None:
        raise StorageError("this store cannot rename")

    def delete(self, key: str) -> None:
        self._store.delete(self._key(key))

    def delete_tree(self, key: str) -> None:
        self._store.delete_tree(self._key(key))

    def open_append(self, key: str) -> AppendHandle:
        raise StorageError("this store cannot append")

    def lock(self, key: str, description: str) -> StoreLock | str:
        raise StorageError("this store has no locks")

    def sync(self, directory: str, files: Sequence[str]) -> None:
        return

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}".strip("/")
