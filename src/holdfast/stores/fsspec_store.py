"""A store that is a directory in any file system of fsspec: `hdfs://`, `sftp://`, `smb://`, `memory://`, …, or an object of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from holdfast.errors import StorageError
from holdfast.stores.base import AppendHandle, Capabilities, Hasher, Store, StoreEntry, StoreLock
from holdfast.stores.fsspec_connection import Connection
from holdfast.stores.fsspec_keys import key_of, name_of
from holdfast.stores.fsspec_look import changed_s, is_directory, list_level, look, read_whole, size_of
from holdfast.stores.fsspec_made import check_url
from holdfast.stores.fsspec_open import open_file
from holdfast.stores.fsspec_probe import probe
from holdfast.stores.fsspec_write import (
    create_record,
    make_directory,
    put_descriptor,
    remove_directory,
    remove_file,
    write_record,
)
from holdfast.stores.local_write import temporary_name


class FsspecStore(Store):
    """A directory of a file system of fsspec as a store; see `Store` for what each method promises.

    It is used as object stores are: files go to their final places and the manifest makes them a checkpoint, for what fsspec calls a
    move is a copy on many file systems. Nothing is appended to or locked. What a write has returned is as durable as the server makes
    it. Whether creation is exclusive, and a record is replaced in one step, depends on the file system (`fsspec_traits`), and `prepare`
    looks.

    Costs, in calls of fsspec: `read`, `exists` and `delete` are one; a record is written by two to six, which read it back; a file by
    three, and more if it is large; a recursive listing is one a directory.

    Args:
        path: A URL; with `filesystem`, a path in it.
        filesystem: A file system object of fsspec or pyarrow.
        options: What a file system that the URL names is made with.

    Raises:
        ConfigurationError: There is no such scheme, an option is not known, or fsspec, or what it needs for it, is not installed.
    """

    def __init__(self, path: str, filesystem: Any = None, options: Mapping[str, Any] | None = None) -> None:
        if filesystem is None:
            check_url(path, options or {})
        self._assign(Connection(path, options or {}, filesystem), "")

    def _assign(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix

    @classmethod
    def _of(cls, connection: Connection, prefix: str) -> FsspecStore:
        store = cls.__new__(cls)
        store._assign(connection, prefix)
        return store

    def __reduce__(self) -> Any:
        return FsspecStore._of, (self._connection, self._prefix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FsspecStore) and (other._connection, other._prefix) == (self._connection, self._prefix)

    def __hash__(self) -> int:
        return hash((self._connection, self._prefix))

    def __repr__(self) -> str:
        return f"FsspecStore({self.url!r})"

    @property
    def url(self) -> str:
        """The URL without user, password and options; of a file system object, the path in it."""
        return self._connection.where(self._prefix)

    @property
    def is_of_this_process(self) -> bool:
        """Whether it is memory of this process."""
        return self._connection.is_of_this_process

    @property
    def capabilities(self) -> Capabilities:
        """What is known of the file system, and what `prepare` has found."""
        return Capabilities(
            atomic_rename=False,
            exclusive_create=self._connection.traits.exclusive,
            append=False,
            durable_writes=True,
            kernel_lock=False,
            links=False,
            whole_replacement=self._connection.traits.replaces_whole,
        )

    def child(self, key: str) -> FsspecStore:
        """A directory below this one as a store."""
        return FsspecStore._of(self._connection, self._name(key))

    def local_path(self, key: str = "") -> Path | None:
        """None: even what lies on this machine is reached through fsspec only."""
        return None

    def prepare(self) -> None:
        """Makes the directory, tries what a run needs, and says once in a warning what is weaker than elsewhere."""
        # What a death in there leaves is collected by its name when the run is next driven.
        probe(self._connection, self._prefix, temporary_name(), temporary_name())

    def exists(self, key: str) -> bool:
        """One call."""
        return look(self._connection, self._name(key)) is not None

    def read(self, key: str) -> bytes:
        """The whole file."""
        return read_whole(self._connection, self._name(key))

    def open_read(self, key: str) -> BinaryIO:
        """The file, fetched in ranges as they are read."""
        return open_file(self._connection.bulk, self._name(key))

    def write(self, key: str, data: bytes) -> None:
        """In one piece, or beside its place and moved there; then read back."""
        write_record(self._connection, self._name(key), data)

    def create(self, key: str, data: bytes) -> None:
        """As exclusive as the file system can; then read back."""
        create_record(self._connection, self._name(key), data)

    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        """In pieces of 4 MiB, then its size is compared; the mode is not kept, and holes are sent as zeros."""
        put_descriptor(self._connection.bulk, self._name(key), source, size_bytes, hasher)

    def adopt_file(self, key: str, source: str | int) -> bool:
        """False: it has to be sent."""
        return False

    def put_symlink(self, key: str, target: str) -> None:
        """Does nothing."""

    def make_directory(self, key: str) -> None:
        """Makes one where the file system has such."""
        make_directory(self._connection, self._name(key))

    def list(self, key: str = "", *, recursive: bool = False) -> Iterator[StoreEntry]:
        """A call for each directory, when it is come to."""
        waiting = [self._name(key)]
        while waiting:
            name = waiting.pop()
            for entry, below in self._level(name):
                if is_directory(entry) and recursive:
                    waiting.append(below)
                else:
                    yield self._entry(entry, below)

    def rename(self, source: str, target: str) -> None:
        """Not possible.

        Raises:
            StorageError: Always.
        """
        raise StorageError(
            f"Cannot rename {source!r} in {self.url!r}: through fsspec a directory is not moved in one step"
        )

    def delete(self, key: str) -> None:
        """One call."""
        remove_file(self._connection, self._name(key))

    def delete_tree(self, key: str) -> None:
        """Removes what is listed, from the bottom up; where nothing is, a file of that very name."""
        name = self._name(key)
        found = look(self._connection, name)
        if found is None:
            return
        if is_directory(found):
            self._delete_below(name)
        else:
            remove_file(self._connection, name)

    def open_append(self, key: str) -> AppendHandle:
        """Not possible.

        Raises:
            StorageError: Always.
        """
        raise StorageError(
            f"Cannot append to {key!r} in {self.url!r}: through fsspec it is not known what an append survives"
        )

    def lock(self, key: str, description: str) -> StoreLock | str:
        """Not possible.

        Raises:
            StorageError: Always.
        """
        raise StorageError(f"Cannot lock {key!r} in {self.url!r}: fsspec has no locks")

    def sync(self, directory: str, files: Sequence[str]) -> None:
        """Does nothing: what a write has returned is the server's to keep."""

    def _name(self, key: str) -> str:
        name = name_of(key, self._connection.escape)
        return f"{self._prefix}/{name}" if self._prefix and name else self._prefix or name

    def _level(self, name: str) -> Iterator[tuple[Mapping[str, Any], str]]:
        """The entries of a directory, each with its name below the root."""
        for entry in list_level(self._connection, name):
            # Of the paths that file systems give, in forms of their own, only the last part is sure.
            last = str(entry["name"]).rstrip("/").rpartition("/")[2]
            yield entry, f"{name}/{last}" if name else last

    def _entry(self, entry: Mapping[str, Any], name: str) -> StoreEntry:
        is_folder = is_directory(entry)
        below = name[len(self._prefix) + 1 :] if self._prefix else name
        return StoreEntry(
            key=key_of(below, self._connection.escape),
            size_bytes=0 if is_folder else size_of(entry) or 0,
            is_directory=is_folder,
            mtime_s=changed_s(entry),
        )

    def _delete_below(self, name: str) -> None:
        for entry, below in self._level(name):
            if is_directory(entry):
                self._delete_below(below)
            else:
                remove_file(self._connection, below)
        if name:
            remove_directory(self._connection, name)
