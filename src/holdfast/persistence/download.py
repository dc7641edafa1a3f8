"""Writes a checkpoint's files into a local directory, each compared with its digest on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from holdfast.errors import StorageError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.download_files import fetch_files
from holdfast.persistence.verify import select
from holdfast.records import Manifest, StoredFile
from holdfast.stores.base import Store
from holdfast.stores.local import LocalStore
from holdfast.stores.local_errors import storage_error


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
    # Asked for before the files: a store far away answers meanwhile.
    own = [layout.METADATA] if include is not None else [layout.METADATA, layout.MANIFEST]
    with contextlib.ExitStack() as asked:
        begun = [(name, store.begin_read(name, None)) for name in own]
        for _, read in begun:
            asked.callback(read.cancel)
        _fetch_reported(store, target, files, kept)
        for name, read in begun:
            try:
                target.write(name, bytes(read.wait()))
            except StoreNotFoundError:
                continue


def _fetch_reported(store: Store, target: LocalStore, files: Sequence[StoredFile], kept: Mapping[str, str]) -> None:
    fetch_files(store, target, [file for file in files if file.kind == "file"], kept)
    for file in files:
        if file.kind == "directory":
            target.make_directory(layout.decode_path(file.path))
    # Links last: no file is ever written through one.
    for file in files:
        if file.kind == "symlink":
            target.put_symlink(layout.decode_path(file.path), layout.decode_path(file.target or ""))


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
