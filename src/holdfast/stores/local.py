"""A store that is a directory of this machine, or of a mounted network file system."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from holdfast.errors import StorageError, StoreExistsError, StoreNotFoundError
from holdfast.stores.base import AppendHandle, Capabilities, Hasher, Store, StoreEntry, StoreLock
from holdfast.stores.local_copy import copy_bytes
from holdfast.stores.local_errors import storage_error
from holdfast.stores.local_lock import take_lock
from holdfast.stores.local_sync import sync_directory
from holdfast.stores.local_tree import list_tree, make_directories, remove_tree
from holdfast.stores.local_write import LocalAppend, temporary_name, unlink_quietly, write_new

_CAPABILITIES = Capabilities(
    atomic_rename=True, exclusive_create=True, append=True, durable_writes=False, kernel_lock=True, links=True
)
# Links to files are refused by some file systems (exFAT, some network mounts), across them, and for too many links.
_NO_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK})
_DESCRIPTORS = "/proc/self/fd"
_Result = TypeVar("_Result")


class LocalStore(Store):
    """A directory as a store; see `Store` for what each method promises.

    Writes of records go through a hidden temporary file beside their target, so a reader never sees half of one.
    Nothing here waits for the disk but `sync`. Keys may hold any bytes but NUL.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(os.path.expanduser(os.fsdecode(root)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStore) and other._root == self._root

    def __hash__(self) -> int:
        return hash(self._root)

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    @property
    def url(self) -> str:
        """The directory, absolute."""
        return self._root

    @property
    def capabilities(self) -> Capabilities:
        """All but durable writes: those need `sync`."""
        return _CAPABILITIES

    def child(self, key: str) -> LocalStore:
        """A sub-directory as a store; it need not exist."""
        return LocalStore(self._path(key))

    def local_path(self, key: str = "") -> Path:
        """Where a key lies."""
        return Path(self._path(key))

    def prepare(self) -> None:
        """Makes the directory, and writes and removes a probe file in it."""
        try:
            make_directories(self._root)
        except (FileExistsError, NotADirectoryError) as error:
            raise StorageError(
                f"Cannot use {self._root!r} for storage: it, or a directory above it, is a file; "
                f"choose another storage_path"
            ) from error
        except FileNotFoundError as error:  # of a file system that makes none, such as /proc
            raise StorageError(
                f"Cannot make the directory {self._root!r} for storage ({os.strerror(error.errno or 0)}); choose another storage_path"
            ) from error
        except OSError as error:
            raise storage_error("make the directory", self._root, error) from error
        # Permission bits do not tell (root ignores them, access lists override them): only writing does.
        probe = os.path.join(self._root, temporary_name())
        try:
            write_new(probe, b"holdfast")
            os.unlink(probe)
        except OSError as error:
            raise storage_error("write to the directory", self._root, error) from error

    def exists(self, key: str) -> bool:
        """Whether there is anything at all, a dangling link included."""
        return os.path.lexists(self._path(key))

    def read(self, key: str) -> bytes:
        """The whole file."""
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        except OSError as error:
            raise storage_error("read", path, error) from error

    def open_read(self, key: str) -> BinaryIO:
        """The file, buffered."""
        path = self._path(key)
        try:
            return open(path, "rb")
        except OSError as error:
            raise storage_error("open", path, error) from error

    def write(self, key: str, data: bytes) -> None:
        """Replaces by rename."""
        path = self._path(key)
        temporary = self._write_beside(path, data)
        try:
            # Dead before this line: a stray hidden file, the old object. After it: the new object, whole.
            os.replace(temporary, path)
        except BaseException as error:
            unlink_quietly(temporary)
            if isinstance(error, OSError):
                raise storage_error("write", path, error) from error
            raise

    def create(self, key: str, data: bytes) -> None:
        """Creates by hard link, which fails where something lies."""
        path = self._path(key)
        temporary = self._write_beside(path, data)
        try:
            # Dead before this line: a stray hidden file and no object. After it: the object, whole, and a second
            # hidden name for it.
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise storage_error("create", path, error) from error
            self._create_in_place(path, data)
        finally:
            unlink_quietly(temporary)

    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        """Copies by a buffer that stays in the cache; large files with a second thread that reads ahead."""
        path = self._path(key)
        target = self._open_new(path, mode)
        try:
            try:
                # Dead from here on: part of a file in a directory that nobody takes for a checkpoint.
                copy_bytes(source, target, size_bytes, hasher)
                if stat.S_IMODE(os.fstat(target).st_mode) != mode:
                    os.fchmod(target, mode)  # the umask took bits away
            finally:
                os.close(target)
        except BaseException as error:
            self._remove_partial(path, error)
            if isinstance(error, OSError):
                raise storage_error("store", path, error) from error
            raise

    def adopt_file(self, key: str, source: str | int) -> bool:
        """Makes a hard link."""
        target = self._path(key)
        if isinstance(source, int) and not os.path.isdir(_DESCRIPTORS):
            return False
        try:
            self._with_parents("take over", target, lambda: _link(source, target))
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_LINKS:
                return False
            if isinstance(error, StoreNotFoundError) and isinstance(source, int):
                return False  # its last name is gone; the bytes can only be read
            raise
        return True

    def put_symlink(self, key: str, target: str) -> None:
        """Makes the link; an equal one that is there already will do."""
        path = self._path(key)
        try:
            self._with_parents("make the link", path, lambda: os.symlink(target, path))
        except StoreExistsError:
            if _link_target(path) != target:
                raise

    def make_directory(self, key: str) -> None:
        """Makes it with its parents; one that is there already will do."""
        path = self._path(key)
        try:
            make_directories(path)
        except NotADirectoryError as error:
            raise StoreExistsError(f"Cannot make the directory {path!r}: a part of the path is a file") from error
        except OSError as error:
            raise storage_error("make the directory", path, error) from error

    def list(self, key: str = "", *, recursive: bool = False) -> Iterator[StoreEntry]:
        """Walks the directory without following links."""
        return list_tree(self._path(key), key, recursive=recursive)

    def rename(self, source: str, target: str) -> None:
        """One `rename` of the kernel."""
        old, new = self._path(source), self._path(target)
        # The kernel would replace an empty directory at the target; no other kind. Whoever makes an empty one between
        # these two lines loses nothing, so the check is enough.
        if os.path.lexists(new):
            raise StoreExistsError(f"Cannot rename {old!r} to {new!r}: something lies there")
        # Dead before this line: all at the old name. After it: all at the new one.
        self._with_parents("rename to", new, lambda: os.rename(old, new))

    def delete(self, key: str) -> None:
        """Unlinks."""
        path = self._path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise storage_error("delete", path, error) from error

    def delete_tree(self, key: str) -> None:
        """Removes what is there, however others remove at the same time."""
        remove_tree(self._path(key))

    def open_append(self, key: str) -> AppendHandle:
        """Opens with `O_APPEND`; for one writer at a time."""
        path = self._path(key)
        return self._with_parents("append to", path, lambda: LocalAppend(path))

    def lock(self, key: str, description: str) -> StoreLock | str:
        """Takes a kernel lock (`flock`) on a file made for it, which stays."""
        path = self._path(key)
        self._make_parents(path)
        return take_lock(path, description)

    def sync(self, directory: str, files: Sequence[str]) -> None:
        """Runs `fsync` on the files, several at once, then on the directories from the deepest up."""
        sync_directory(self._path(directory), [self._path(key) for key in files])

    def _path(self, key: str) -> str:
        if not key:
            return self._root
        if ".." in key and ".." in key.split("/"):
            raise StorageError(f"The key {key!r} leads out of the store {self._root!r}")
        return f"{self._root}/{key}"

    def _open_new(self, path: str, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return self._with_parents("create", path, lambda: os.open(path, flags, mode & 0o777))

    def _with_parents(self, action: str, path: str, operation: Callable[[], _Result]) -> _Result:
        """Does something that needs the directory of `path`, which is made only where it turns out to be missing."""
        try:
            return operation()
        except FileNotFoundError:
            self._make_parents(path)
        except OSError as error:
            raise self._blocked(path) or storage_error(action, path, error) from error
        try:
            return operation()
        except OSError as error:
            raise storage_error(action, path, error) from error

    def _make_parents(self, path: str) -> None:
        parent = os.path.dirname(path)
        try:
            make_directories(parent)
        except OSError as error:
            raise self._blocked(path) or storage_error("make the directory", parent, error) from error

    def _blocked(self, path: str) -> StoreExistsError | None:
        """The error for a file that lies where a directory above `path` should be, if one does."""
        parent = os.path.dirname(path)
        while len(parent) > len(self._root):
            if os.path.lexists(parent) and not os.path.isdir(parent):
                return StoreExistsError(f"Cannot create {path!r}: {parent!r} is a file")
            parent = os.path.dirname(parent)
        return None

    def _write_beside(self, path: str, data: bytes) -> str:
        temporary = f"{os.path.dirname(path)}/{temporary_name()}"
        self._with_parents("write", path, lambda: write_new(temporary, data))
        return temporary

    def _create_in_place(self, path: str, data: bytes) -> None:
        try:
            # Without links there is no way to have both "whole" and "exclusive". Dead in here: a short object, which
            # its reader refuses as no valid record.
            write_new(path, data)
        except OSError as error:
            raise storage_error("create", path, error) from error

    def _remove_partial(self, path: str, cause: BaseException) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            # Not a cause that a retry may follow: it would find the remains and take them for another's file.
            raise StorageError(
                f"Cannot remove the incomplete {path!r} ({os.strerror(error.errno or 0)}) after: {cause}"
            ) from None


def _link(source: str | int, target: str) -> None:
    if isinstance(source, int):
        # The directory's descriptor has no meaning beside an absolute path; it makes Python call the variant of the
        # system call that follows the kernel's link to the open file.
        os.link(f"{_DESCRIPTORS}/{source}", target, src_dir_fd=source, follow_symlinks=True)
    else:
        os.link(source, target, follow_symlinks=False)


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
