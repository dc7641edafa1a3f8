"""The contract of a store: the one thing that persistence asks of any place that bytes can lie in.

A store knows nothing of checkpoints. Keys are relative to the store's root, `/`-separated texts without empty, `.`
or `..` parts; bytes that are no UTF-8 appear as surrogates, as `os.fsdecode` gives them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Capabilities:
    """What a store can do beyond putting and getting; the commit protocol chooses by these.

    Attributes:
        atomic_rename: `rename` moves a whole directory in one step that readers see entirely or not at all.
        exclusive_create: `create` never overwrites, even against a second writer at the same instant.
        append: `open_append` exists, and appended bytes survive the death of the process.
        durable_writes: What a write has returned survives a loss of power; `sync` has nothing to do.
        kernel_lock: `lock` exists, and the lock goes with the process that holds it.
        links: `put_symlink` makes a real link; elsewhere only the manifest knows of it.
        whole_replacement: Who reads an object while `write` replaces it sees the old one or the new one.
        copies: `copy` exists, and sends no bytes through this machine.
        lists: `list` exists; else only what is known by its key can be read.
        asks_ahead: `begin_read` and `begin_put_file` return before the store has answered.
        parts: `part` gives parts of one object to several threads at once.
    """

    atomic_rename: bool
    exclusive_create: bool
    append: bool
    durable_writes: bool
    kernel_lock: bool
    links: bool
    whole_replacement: bool = True
    copies: bool = False
    lists: bool = True
    asks_ahead: bool = False
    parts: bool = False


@dataclass(frozen=True)
class StoreEntry:
    """One entry of a listing.

    Attributes:
        key: The full key.
        size_bytes: 0 for a directory.
        is_directory: True for a directory (or common prefix).
        mtime_s: Last modification, seconds since the Unix epoch; 0.0 where the store has none.
    """

    key: str
    size_bytes: int
    is_directory: bool
    mtime_s: float


class PartRefusedError(Exception):
    """A part of an object was not given: it has another size than was thought, or the server does not answer for parts."""


@dataclass(frozen=True)
class BegunRead:
    """An object that was asked for.

    Attributes:
        wait: Waits for it and gives its bytes; it raises what `Store.read` would.
        cancel: Nobody waits for it any more.
    """

    wait: Callable[[], bytes | memoryview]
    cancel: Callable[[], object]


class Hasher(Protocol):
    """Takes a file's bytes in order (a hole counts as the zeros it reads as)."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Adds the next bytes."""


class AppendHandle(Protocol):
    """An open end of a growing object."""

    def write(self, data: bytes) -> None:
        """Appends; when it returns, the bytes survive the death of this process."""

    def close(self) -> None:
        """Ends appending."""


class StoreLock(Protocol):
    """A held lock."""

    def release(self) -> None:
        """Gives the lock back; safe to repeat."""

    def __enter__(self) -> StoreLock: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


UNKNOWN_HOLDER = "a process that did not say who it is"
"""What `Store.lock` says of a holder that has not written its description, or not yet."""


class Store(ABC):
    """A place that holds bytes under keys.

    All methods are safe to call from several threads. A store can be pickled; what is in it of credentials goes along between the
    processes of one job, and is left out elsewhere (`secrecy`). Every failure is a `StorageError` (or one of its
    subclasses) that names the key and the remedy where one is known; an `OSError` never escapes.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The root as a user writes it: a path for local stores, else a URI. Never holds a secret."""

    @property
    def is_of_this_process(self) -> bool:
        """Whether no other process can reach what lies there, as in this one's memory."""
        return False

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this store can do."""

    @abstractmethod
    def child(self, key: str) -> Store:
        """The same store with `key` as its root. Costs nothing."""

    @abstractmethod
    def local_path(self, key: str = "") -> Path | None:
        """The path of `key` where the store is a directory of this machine, else None."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes the root if it is missing and proves that it can be written.

        Raises:
            StorageError: It cannot; the text says why and what to do.
        """

    def hurry(self, *, on: bool = True) -> None:
        """The run is to end at once: what still waits for an answer of the store fails within seconds. Safe in a signal handler.

        Nothing where a wait cannot be broken off, or never is long.

        Args:
            on: False: it has ended, and whatever comes may take its time again.
        """
        return

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether an object (or directory) lies at `key`."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The whole object; for records, not for checkpoint files.

        Raises:
            StoreNotFoundError: There is none.
        """

    def begin_read(self, key: str, size_bytes: int | None) -> BegunRead:
        """Asks for a whole small object, for who wants many of them and need not wait for one to ask for the next.

        With `capabilities.asks_ahead`; elsewhere it is read when it is waited for.

        Args:
            size_bytes: How many there should be. Of a longer object no more need come; of a shorter one all does.
                None for all of it, however long.
        """
        return BegunRead(wait=lambda: self.read(key), cancel=lambda: None)

    @abstractmethod
    def open_read(self, key: str) -> BinaryIO:
        """The object as a seekable binary file.

        Raises:
            StoreNotFoundError: There is none.
        """

    def chunks(self, key: str, size_bytes: int) -> Generator[memoryview, None, None]:
        """The bytes of an object in order, for who reads all of it once; each chunk is good until the next is asked for.

        Args:
            size_bytes: How many there should be; what there is comes, whatever that is.

        Raises:
            StoreNotFoundError: There is none.
        """
        with self.open_read(key) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield memoryview(chunk)

    def part(self, key: str, size_bytes: int, start: int, end: int) -> Generator[memoryview, None, None]:
        """As `chunks`, from one byte of the object to another (not included), for who reads all of it in several threads.

        Needs `capabilities.parts`.

        Args:
            size_bytes: How many the whole object should have.

        Raises:
            PartRefusedError: `chunks` may give it nevertheless. Nothing of the part was given yet.
            StoreNotFoundError: There is none.
        """
        raise PartRefusedError

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Puts a small object, replacing what was there; a reader sees the old one or the new one, whole.

        Without `capabilities.whole_replacement` a reader may, for an instant, find nothing or a part.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Puts a small object that must not exist yet; a reader sees it whole or not at all.

        Raises:
            StoreExistsError: Something lies there. Where a first answer may have been lost, the caller reads back
                and compares: it may be our own.
        """

    @abstractmethod
    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        """Copies an open file to `key`, which must not exist; reads each byte once.

        Holes stay holes where the store can. Not atomic: a directory that is not committed yet takes it.

        Args:
            source: A readable descriptor; its offset is ignored and may be moved.
            size_bytes: How many bytes to copy from the start.
            mode: Permission bits, kept where the store can.
            hasher: Fed with every byte in order.

        Raises:
            StoreExistsError: Something lies there; nothing was read or written.
            StorageError: Reading ended early, or the write failed (`No space left` …); the partial object is removed.
        """

    def begin_put_file(
        self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None
    ) -> Callable[[], None] | None:
        """Begins `put_file`, for who has many small files and need not wait for one to begin the next.

        Returns:
            What waits for its end; it raises what `put_file` would. None where `put_file` is to be called: for larger files, and
            where nothing is gained.

        Raises:
            StorageError: Reading failed, or nothing can be sent.
        """
        return None

    def confirm(self, directory: str, sizes: Mapping[str, int]) -> Mapping[str, str]:
        """Looks whether files that were put are there. Nothing where that `put_file` returned is proof enough.

        Args:
            directory: Where they are.
            sizes: Their bytes, by their keys below it.

        Returns:
            What tells each from whatever else may lie there later, by its key, where the store says such (`copy` asks for it).

        Raises:
            StorageUnavailableError: One is not there; a listing may know it later.
            StorageError: One has another size.
        """
        return {}

    @abstractmethod
    def adopt_file(self, key: str, source: str | int) -> bool:
        """Takes over a file of this machine without copying (hard link); the original stays in place.

        Args:
            source: Its path, or a descriptor that is open on it.

        Returns:
            False where that cannot be done (another file system, no links, no permission, no name left): then copy.

        Raises:
            StoreExistsError: Something lies at `key`.
        """

    def copy(self, source: str, target: str, size_bytes: int, tag: str) -> bool:
        """Has the store itself copy an object of so many bytes; False where that cannot be done, and the bytes are to be sent.

        Needs `capabilities.copies`.

        Args:
            tag: What `confirm` said of the source: nothing else is copied.

        Raises:
            StoreExistsError: Something lies at `target`.
        """
        return False

    @abstractmethod
    def put_symlink(self, key: str, target: str) -> None:
        """Makes a symbolic link at `key`, or nothing where the store has none.

        Raises:
            StoreExistsError: Something else lies there.
        """

    @abstractmethod
    def make_directory(self, key: str) -> None:
        """Makes a directory and its parents; nothing where directories are only prefixes."""

    @abstractmethod
    def list(self, key: str = "", *, recursive: bool = False) -> Iterator[StoreEntry]:
        """The entries below `key`, in no order; nothing if there is no such directory.

        Recursive listings give files (and links) only. An entry that vanishes meanwhile is left out.
        """

    @abstractmethod
    def rename(self, source: str, target: str) -> None:
        """Moves a directory to a key where nothing lies, in one step.

        Raises:
            StoreExistsError: Something lies at `target`.
            StoreNotFoundError: Nothing lies at `source`.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes one object; one that is already gone is no error."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """As `delete` of each, a thousand at most; in one request where the store can."""
        for key in keys:
            self.delete(key)

    def give_up_uploads(self, key: str) -> None:
        """Ends what processes that are gone had begun to store below `key` and never completed; it cannot be completed any more.

        Nothing where there is no such thing, or nobody may look for it.

        Raises:
            StorageError: The store did not say.
        """
        return

    @abstractmethod
    def delete_tree(self, key: str) -> None:
        """Removes a directory and all below it; one that is already gone is no error."""

    @abstractmethod
    def open_append(self, key: str) -> AppendHandle:
        """Opens an object for appending, made where missing. Needs `capabilities.append`."""

    @abstractmethod
    def lock(self, key: str, description: str) -> StoreLock | str:
        """Takes an exclusive lock that ends with this process, without waiting. Needs `capabilities.kernel_lock`.

        Args:
            description: Who we are; another process that fails to lock reads it.

        Returns:
            The lock, or the description that its present holder gave.
        """

    @abstractmethod
    def sync(self, directory: str, files: Sequence[str]) -> None:
        """Makes files, the directories between them and `directory`, and `directory`'s own entry durable.

        Args:
            files: Keys below `directory`.
        """
