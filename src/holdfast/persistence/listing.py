"""What a checkpoint holds that has no manifest: somebody's own directory."""

from __future__ import annotations

import os
import stat

from holdfast.persistence import layout
from holdfast.persistence.digest import FileHasher
from holdfast.records import Manifest, StoredFile
from holdfast.stores.base import Store


def list_files(store: Store) -> tuple[StoredFile, ...]:
    """The files and links below the root of a store, by path; without digests, and without Holdfast's own."""
    root = store.local_path()
    found = []
    for entry in store.list(recursive=True):
        path = layout.encode_path(entry.key)
        if path in (layout.MANIFEST, layout.METADATA):
            continue
        if root is None:
            found.append(StoredFile(path=path, size_bytes=entry.size_bytes))
            continue
        place = f"{root}/{entry.key}"
        try:
            status = os.lstat(place)
            target = layout.encode_path(os.readlink(place)) if stat.S_ISLNK(status.st_mode) else None
        except FileNotFoundError:
            continue
        mode = status.st_mode & 0o7777
        if target is not None:
            found.append(StoredFile(path=path, kind="symlink", mode=mode, target=target))
        else:
            found.append(StoredFile(path=path, size_bytes=status.st_size, mode=mode))
    return tuple(sorted(found, key=lambda file: file.path))


def listed_manifest(store: Store) -> Manifest:
    """A manifest in the place of a missing one; its id changes with the names, sizes and times of the files."""
    state = sorted((entry.key, entry.size_bytes, entry.mtime_s) for entry in store.list(recursive=True))
    hasher = FileHasher()
    hasher.update(repr(state).encode("utf-8", "surrogateescape"))
    return Manifest(id=hasher.text(), files=list_files(store))
