"""A store that is a bucket of S3, Google Cloud Storage or Azure, or a prefix in one; or what a web server shows, to be read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from holdfast.errors import StorageAccessError, StorageError, StorageUnavailableError, StoreExistsError
from holdfast.stores.base import (
    AppendHandle,
    BegunRead,
    Capabilities,
    Hasher,
    PartRefusedError,
    Store,
    StoreEntry,
    StoreLock,
)
from holdfast.stores.local_write import temporary_name
from holdfast.stores.object_chunks import WHOLE_BYTES, begin, chunks, part
from holdfast.stores.object_client import Client, client_of
from holdfast.stores.object_keys import key_of, name_of
from holdfast.stores.object_leftovers import give_up_uploads
from holdfast.stores.object_open import ObjectReader
from holdfast.stores.object_probe import probe
from holdfast.stores.object_put import begin_small, confirm, put_descriptor
from holdfast.stores.object_requests import Listed, copy, delete, delete_all, get, is_taken, level, look, pages, put
from holdfast.stores.object_url import Place, parse_url


class ObjectStore(Store):
    """A prefix of a bucket as a store; see `Store` for what each method promises.

    Every object appears whole or not at all. There are no directories: a listing makes them up from the names, and what makes
    one does nothing. Nothing can be renamed, appended to or locked. What a write has returned is as durable as the service
    makes it.

    Costs, in requests: `read`, `write`, `create`, `delete`, opening, and a page of 1,000 entries of a listing are one each;
    `put_file` is one for a small file, and one a part and three more for one of over 8 MiB; `confirm` is one a thousand files;
    `exists` is two at once.

    Args:
        url: `s3://bucket/prefix?option=value`; see `object_url` for the schemes and options.
        options: Options that are not in the URL; see `object_options`.

    Raises:
        ConfigurationError: The URL names no bucket, or has an option that is not known.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        place, prefix = parse_url(url, options)
        self._assign(place, name_of("", prefix))

    def _assign(self, place: Place, prefix: str) -> None:
        self._place = place
        self._prefix = prefix
        self._client: Client = client_of(place)

    @classmethod
    def _of(cls, place: Place, prefix: str) -> ObjectStore:
        store = cls.__new__(cls)
        store._assign(place, prefix)
        return store

    def __reduce__(self) -> Any:
        # What came from the environment is not part of it, and is found there again.
        return ObjectStore._of, (self._place, self._prefix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and (other._place, other._prefix) == (self._place, self._prefix)

    def __hash__(self) -> int:
        return hash((self._place, self._prefix))

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    @property
    def url(self) -> str:
        """The URL without its options, which may hold secrets."""
        key = key_of("", self._prefix)
        return f"{self._place.root}/{key}" if key else self._place.root

    @property
    def capabilities(self) -> Capabilities:
        """Durable writes, and exclusive creation unless `prepare` found that the server ignores it."""
        return Capabilities(
            atomic_rename=False,
            exclusive_create=self._client.exclusive,
            append=False,
            durable_writes=True,
            kernel_lock=False,
            links=False,
            copies=True,
            lists=self._place.service != "http",
            asks_ahead=True,
            parts=self._client.answers_ranges,
        )

    def child(self, key: str) -> ObjectStore:
        """A prefix below this one as a store."""
        return ObjectStore._of(self._place, self._name(key))

    def local_path(self, key: str = "") -> Path | None:
        """None: nothing lies on this machine."""
        return None

    def hurry(self, *, on: bool = True) -> None:
        """Of the whole bucket, in this process."""
        self._client.calls.hurry(on=on)

    def prepare(self) -> None:
        """Writes, lists and deletes a probe object, and finds out whether creation is exclusive.

        Raises:
            StorageAccessError: There is no such bucket, a right is missing, or the credentials or the region are wrong; or it is a web
                server, which is read only.
            StorageUnavailableError: The endpoint cannot be reached.
        """
        if self._place.service == "http":
            raise StorageAccessError(
                f"Cannot store in {self.url!r}: a web server is for reading; give a path, or the URL of a bucket (s3://…)"
            )
        # What a death in there leaves is collected by its name when the run is next driven.
        probe(self._client, self._name(temporary_name()), self._prefix)

    def exists(self, key: str) -> bool:
        """Whether an object has this name, or a name below it."""
        name = self._name(key)
        if self._place.service == "http":  # which cannot be asked for what is below
            return bool(key) and look(self._client, name) is not None
        if not key:
            return next(pages(self._client, name, size=1), None) is not None
        return is_taken(self._client, name)

    def read(self, key: str) -> bytes:
        """The whole object."""
        return bytes(get(self._client, self._name(key)).data)

    def begin_read(self, key: str, size_bytes: int | None) -> BegunRead:
        """One request, which is on its way when this returns."""
        return begin(self._client, self._name(key), size_bytes)

    def open_read(self, key: str) -> BinaryIO:
        """The object, fetched in ranges as they are read, and ahead of that."""
        return cast("BinaryIO", ObjectReader(self._client, self._name(key)))

    def chunks(self, key: str, size_bytes: int) -> Generator[memoryview, None, None]:
        """One request for up to 1 MiB, else one for each 8 MiB, four of them at once as far as the budget has memory."""
        if self._client.answers_ranges or size_bytes <= WHOLE_BYTES:
            try:
                yield from chunks(self._client, self._name(key), size_bytes)
            except PartRefusedError:
                pass
            else:
                return
        yield from super().chunks(key, size_bytes)

    def part(self, key: str, size_bytes: int, start: int, end: int) -> Generator[memoryview, None, None]:
        """One request for each 8 MiB, four of them at once as far as the budget has memory."""
        if not self._client.answers_ranges:
            raise PartRefusedError
        return part(self._client, self._name(key), size_bytes, start, end)

    def write(self, key: str, data: bytes) -> None:
        """One request, which replaces."""
        put(self._client, self._name(key), data, only_new=False, action="write")

    def create(self, key: str, data: bytes) -> None:
        """One request with the condition that nothing is there; where the server ignores it, a look before.

        Where the answer was lost, and an object is there, that is said to exist: it may be ours.
        """
        name = self._name(key)
        exists = StoreExistsError(f"Cannot create {self.url}/{key}: something lies there")
        if not self._client.exclusive and look(self._client, name) is not None:
            raise exists
        try:
            put(self._client, name, data, only_new=self._client.exclusive, action="create")
        except StorageUnavailableError:
            if look(self._client, name) is None:
                raise
            raise exists from None

    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        """Sends small files whole and larger ones in parts; the mode is not kept, and holes are sent as zeros."""
        put_descriptor(self._client, self._name(key), source, size_bytes, hasher)

    def begin_put_file(
        self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None
    ) -> Callable[[], None] | None:
        """One request, which is on its way when this returns; for files up to 64 KiB where creation is exclusive."""
        return begin_small(self._client, self._name(key), source, size_bytes, hasher)

    def confirm(self, directory: str, sizes: Mapping[str, int]) -> Mapping[str, str]:
        """Lists what lies there: a request a thousand files."""
        keys = {self._name(f"{directory}/{key}"): key for key in sizes}
        tags = confirm(self._client, self._name(directory), {name: sizes[key] for name, key in keys.items()})
        return {keys[name]: tag for name, tag in tags.items()}

    def adopt_file(self, key: str, source: str | int) -> bool:
        """False: it has to be sent."""
        return False

    def copy(self, source: str, target: str, size_bytes: int, tag: str) -> bool:
        """Three requests; of objects that are larger than one request copies, none."""
        return copy(self._client, self._name(source), self._name(target), size_bytes, tag)

    def put_symlink(self, key: str, target: str) -> None:
        """Does nothing."""

    def make_directory(self, key: str) -> None:
        """Does nothing."""

    def list(self, key: str = "", *, recursive: bool = False) -> Iterator[StoreEntry]:
        """Pages of 1,000 entries, each fetched when it is come to; of one level all at once."""
        prefix = self._name(key)
        return self._list_all(prefix) if recursive else self._list_level(prefix)

    def rename(self, source: str, target: str) -> None:
        """Not possible.

        Raises:
            StorageError: Always.
        """
        raise StorageError(f"Cannot rename {source!r} in {self.url!r}: object stores have no renaming")

    def delete(self, key: str) -> None:
        """One request."""
        delete(self._client, self._name(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        """One request, or on some services one each."""
        if keys:
            delete_all(self._client, [self._name(key) for key in keys])

    def delete_tree(self, key: str) -> None:
        """Deletes by the thousand what a listing shows; where it shows nothing, an object of that very name."""
        prefix = self._name(key)
        is_empty = True
        for page in pages(self._client, prefix):
            is_empty = False
            delete_all(self._client, [entry.name for entry in page])
        # A server that keeps directories has one of that name perhaps, and refuses to delete it as an object.
        if key and is_empty and look(self._client, prefix) is not None:
            self.delete(key)

    def give_up_uploads(self, key: str) -> None:
        """One request, and one each; see `object_leftovers` for where."""
        give_up_uploads(self._client, self._name(key))

    def open_append(self, key: str) -> AppendHandle:
        """Not possible.

        Raises:
            StorageError: Always.
        """
        raise StorageError(f"Cannot append to {key!r} in {self.url!r}: objects are written whole")

    def lock(self, key: str, description: str) -> StoreLock | str:
        """Not possible.

        Raises:
            StorageError: Always.
        """
        raise StorageError(f"Cannot lock {key!r} in {self.url!r}: object stores have no locks")

    def sync(self, directory: str, files: Sequence[str]) -> None:
        """Does nothing: what a write has returned is durable."""

    def _name(self, key: str) -> str:
        return name_of(self._prefix, key)

    def _list_all(self, prefix: str) -> Iterator[StoreEntry]:
        # Other programs mark a directory by an empty object whose name ends in "/"; the library drops the slash. Names come
        # in order, so such a mark stands right before what is below it.
        held: Listed | None = None
        for page in pages(self._client, prefix):
            for entry in page:
                if held is not None and not entry.name.startswith(f"{held.name}/"):
                    yield self._entry(held)
                held = None
                if entry.name == prefix:
                    continue
                if entry.size_bytes:
                    yield self._entry(entry)
                else:
                    held = entry
        if held is not None:
            yield self._entry(held)

    def _list_level(self, prefix: str) -> Iterator[StoreEntry]:
        objects, directories = level(self._client, prefix)
        for name in directories:
            yield StoreEntry(key_of(self._prefix, name), 0, is_directory=True, mtime_s=0.0)
        for entry in objects:
            if entry.name != prefix and entry.name not in directories:
                yield self._entry(entry)

    def _entry(self, entry: Listed) -> StoreEntry:
        return StoreEntry(
            key=key_of(self._prefix, entry.name),
            size_bytes=entry.size_bytes,
            is_directory=False,
            mtime_s=entry.mtime_s,
        )
