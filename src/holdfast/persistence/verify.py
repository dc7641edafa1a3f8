"""Compares what lies in a store with what a manifest says was reported."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from holdfast.errors import StorageError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.digest import FileHasher, digest_fd, is_known
from holdfast.records import Manifest, StoredFile
from holdfast.stores.base import Store

# From here on threads pay: below it one has read everything before a second has begun.
_PARALLEL_FROM_BYTES = 4 * 1024 * 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
# What a disk says of a sector, and a file system of a checksum, that is bad: the bytes are lost.
_UNREADABLE = frozenset({errno.EIO, errno.ENODATA, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)})


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a stored checkpoint.

    Attributes:
        path: The file's record path.
        reason: What is wrong with it.
        is_certain: False where nothing is known to be wrong, but nothing could be compared either.
    """

    path: str
    reason: str
    is_certain: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def find_damage(
    store: Store, prefix: str, manifest: Manifest, *, digests: bool = True, include: Sequence[str] | None = None
) -> list[Damage]:
    """What is missing or altered of a checkpoint; empty if nothing is.

    Names, kinds, sizes and links of all files are looked at before a byte of any is read.

    Args:
        prefix: The checkpoint's directory in the store.
        digests: Read the files and compare their digests too.
        include: Look only at files that match one of these patterns (see `select`).

    Raises:
        StorageError: The store failed, so that nothing can be said.
    """
    files = select(manifest.files, include)
    root = store.local_path(prefix)
    if root is not None:
        checks = {file.path: _check_local(f"{root}/{layout.decode_path(file.path)}", file) for file in files}
    else:
        checks = _check_remote(store, prefix, files)
    if digests:
        readable = [
            file
            for file in files
            if checks[file.path] is None and file.kind == "file" and file.digest is not None and is_known(file.digest)
        ]
        checks.update(_compare_digests(store, prefix, None if root is None else str(root), readable))
    return [Damage(path, reason) for path, reason in checks.items() if reason is not None]


def find_unknown(manifest: Manifest) -> list[Damage]:
    """The files that verification can say nothing of here, as their digest is of an algorithm that is not known."""
    return [
        Damage(
            file.path,
            f"not compared: this version does not know the digest {file.digest.partition(':')[0]!r}",
            is_certain=False,
        )
        for file in manifest.files
        if file.kind == "file" and file.digest is not None and not is_known(file.digest)
    ]


def select(files: Sequence[StoredFile], include: Sequence[str] | None) -> Sequence[StoredFile]:
    """The files that match one of the patterns.

    Args:
        include: Patterns as for a shell (`*.pt`, `shard-?/*`), matched against the whole path; a directory's name
            stands for all in it. None for all files. A link's target is not added by itself.

    Raises:
        StoreNotFoundError: A pattern matches nothing.
    """
    if include is None:
        return files
    patterns = [include] if isinstance(include, str) else list(include)
    chosen: dict[str, StoredFile] = {}
    for pattern in patterns:
        matching = [file for file in files if _matches(layout.decode_path(file.path), pattern.rstrip("/"))]
        if not matching:
            names = ", ".join(repr(file.path) for file in files[:10]) + (", …" if len(files) > 10 else "")
            raise StoreNotFoundError(f"No file of the checkpoint matches {pattern!r}; it holds: {names or 'nothing'}")
        chosen.update((file.path, file) for file in matching)
    return [file for file in files if file.path in chosen]


def fingerprint(store: Store, prefix: str, manifest: Manifest) -> dict[str, os.stat_result] | None:
    """What stat says of each file, by path; see `is_untouched`.

    Returns:
        None where the store is no directory of this machine. A file that is missing is not in it.
    """
    root = store.local_path(prefix)
    if root is None:
        return None
    found: dict[str, os.stat_result] = {}
    for file in manifest.files:
        try:
            found[file.path] = os.lstat(f"{root}/{layout.decode_path(file.path)}")
        except OSError:
            continue
    return found


def is_older_than_manifest(store: Store, prefix: str) -> bool:
    """Whether the store's times say that nothing of a checkpoint was written after its manifest; False where it has none.

    All times are the store's own: no two clocks are compared.
    """
    times_s = {entry.key: entry.mtime_s for entry in store.list(prefix, recursive=True)}
    manifest_s = times_s.pop(f"{prefix}/{layout.MANIFEST}", 0.0)
    # The user's own metadata may be written at any time.
    times_s.pop(f"{prefix}/{layout.METADATA}", None)
    return all(0.0 < time_s <= manifest_s for time_s in times_s.values())


def is_untouched(then: os.stat_result, now: os.stat_result) -> bool:
    """Whether nobody has changed a file's bytes between two looks at it.

    The time of the inode's last change counts too, unless the file has, or had, other names: checkpoints share files
    by hard links, and each link that comes or goes moves it.
    """
    return (
        (then.st_ino, then.st_size, then.st_mtime_ns, then.st_mode)
        == (now.st_ino, now.st_size, now.st_mtime_ns, now.st_mode)
    ) and (then.st_ctime_ns == now.st_ctime_ns or then.st_nlink > 1 or now.st_nlink > 1)


def all_untouched(then: Mapping[str, os.stat_result] | None, now: Mapping[str, os.stat_result] | None) -> bool:
    """Whether that holds of all files; False where one of the two is not known."""
    if then is None or now is None or then.keys() != now.keys():
        return False
    return all(is_untouched(status, now[path]) for path, status in then.items())


def _matches(path: str, pattern: str) -> bool:
    return path == pattern or path.startswith(f"{pattern}/") or fnmatch.fnmatchcase(path, pattern)


def _check_local(path: str, file: StoredFile) -> str | None:
    try:
        status = os.lstat(path)
    except OSError as error:
        if error.errno in _GONE:
            return "missing"
        raise StorageError(f"Cannot look at {path!r}: {os.strerror(error.errno or 0)}") from error
    if file.kind == "symlink":
        if not stat.S_ISLNK(status.st_mode):
            return "no symbolic link any more"
        target = layout.encode_path(os.readlink(path))
        return None if target == file.target else f"the link points to {target!r} instead of {file.target!r}"
    if file.kind == "directory":
        return None if stat.S_ISDIR(status.st_mode) else "no directory any more"
    if not stat.S_ISREG(status.st_mode):
        return "no regular file any more"
    return _compare_size(file, status.st_size)


def _check_remote(store: Store, prefix: str, files: Sequence[StoredFile]) -> dict[str, str | None]:
    """As `_check_local`, by one listing; links and empty directories may not exist in such a store at all."""
    if store.capabilities.lists:
        skip = len(prefix) + 1 if prefix else 0
        sizes = {entry.key[skip:]: entry.size_bytes for entry in store.list(prefix, recursive=True)}
    else:
        sizes = _ask_sizes(store, prefix, [layout.decode_path(file.path) for file in files if file.kind == "file"])
    checks: dict[str, str | None] = {}
    for file in files:
        if file.kind != "file":
            checks[file.path] = None
            continue
        size_bytes = sizes.get(layout.decode_path(file.path))
        checks[file.path] = "missing" if size_bytes is None else _compare_size(file, size_bytes)
    return checks


def _ask_sizes(store: Store, prefix: str, paths: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for path in paths:
        try:
            with store.open_read(f"{prefix}/{path}" if prefix else path) as stream:
                sizes[path] = stream.seek(0, os.SEEK_END)
        except StoreNotFoundError:
            continue
    return sizes


def _compare_size(file: StoredFile, size_bytes: int) -> str | None:
    return None if size_bytes == file.size_bytes else f"{size_bytes} bytes instead of {file.size_bytes}"


def _compare_digests(store: Store, prefix: str, root: str | None, files: Sequence[StoredFile]) -> dict[str, str | None]:
    def compare(file: StoredFile) -> str | None:
        path = layout.decode_path(file.path)
        if root is not None:
            digest = _digest_local(f"{root}/{path}", file)
        else:
            digest = _digest_remote(store, f"{prefix}/{path}" if prefix else path, file)
        if digest is None:
            return "unreadable: the disk reports an error"
        return None if digest == file.digest else f"its content changed: {digest} instead of {file.digest}"

    if len(files) > 1 and sum(file.size_bytes for file in files) >= _PARALLEL_FROM_BYTES:
        largest_first = sorted(files, key=lambda file: -file.size_bytes)
        threads = min(len(files), max(4, min(16, (os.cpu_count() or 1) * 2)))
        with ThreadPoolExecutor(threads, thread_name_prefix="holdfast-verify") as pool:
            return dict(zip((file.path for file in largest_first), pool.map(compare, largest_first), strict=True))
    return {file.path: compare(file) for file in files}


def _digest_local(path: str, file: StoredFile) -> str | None:
    try:
        descriptor = os.open(path, _READ)
        try:
            return digest_fd(descriptor, file.size_bytes, FileHasher(like=file.digest))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _UNREADABLE:
            return None
        raise StorageError(f"Cannot read {path!r}: {os.strerror(error.errno or 0)}") from error


def _digest_remote(store: Store, key: str, file: StoredFile) -> str | None:
    hasher = FileHasher(like=file.digest)
    try:
        # A generator of an object store has requests on their way, which end with it.
        with contextlib.closing(store.chunks(key, file.size_bytes)) as chunks:
            for chunk in chunks:
                hasher.update(chunk)
    except StoreNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"Cannot read {store.url}/{key}: {error}") from error
    return hasher.text()
