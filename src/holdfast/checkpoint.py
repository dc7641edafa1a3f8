"""`Checkpoint`: a directory of files that a report stored, or that is to be reported."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from holdfast.errors import (
    CheckpointSourceError,
    ConfigurationError,
    DamagedCheckpointError,
    FormatError,
    StoreNotFoundError,
)
from holdfast.persistence import layout
from holdfast.persistence.listing import list_files, listed_manifest
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.verify import Damage, all_untouched, find_damage, find_unknown, fingerprint, select
from holdfast.records import Manifest, StoredFile
from holdfast.secrecy import PickledWithoutSecrets
from holdfast.stores import Store, checked_path, open_store, plain_filesystem
from holdfast.stores.wrapped import identity_of, without_credentials
from holdfast.urls import shown_url

_log = logging.getLogger("holdfast")
_NAMED_DAMAGES = 3
# What `open` copies before it gives the first byte; of larger files the store is asked for what is read.
_COPIED_BYTES = 16 * 1024 * 1024
# Is told the path of whatever is read in this process: a worker has to know whether its function goes on from a checkpoint.
_listener: Callable[[str], None] | None = None


def listen(listener: Callable[[str], None] | None) -> None:
    """From now on has it told the path of each checkpoint that is read in this process; None ends that."""
    global _listener
    _listener = listener


class Checkpoint(PickledWithoutSecrets):
    """A reference to a checkpoint's directory; making one touches no storage.

    Two are equal if they refer to the same path of the same file system. It can be pickled; credentials go along to the processes of
    the job and to those that `multiprocessing` starts, and are left out of any other pickle.

    Args:
        path: Its directory, or a URI.
        filesystem: What `path` belongs to (fsspec, pyarrow); by default the path says it.
        storage_options: What reaches it, beside the options in the URL.

    Raises:
        ConfigurationError: The path is of a kind that this version cannot read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._assign(open_store(path, filesystem, storage_options), plain_filesystem(filesystem))

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """A checkpoint of the files in a local directory, to be reported.

        Raises:
            CheckpointSourceError: There is no such directory, or it is a URL.
        """
        if not isinstance(path, str | os.PathLike):
            raise CheckpointSourceError(f"Checkpoint.from_directory takes a path, not {path!r}")
        if "://" in checked_path(path):
            url = shown_url(os.fspath(path))
            raise CheckpointSourceError(
                f"Checkpoint.from_directory({url!r}): it is a URL, and no directory of this machine; write Checkpoint({url!r})"
            )
        directory = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if not os.path.isdir(directory):
            why = "is a file" if os.path.lexists(directory) else "does not exist"
            raise CheckpointSourceError(
                f"Checkpoint.from_directory({os.fspath(path)!r}): it {why}; give an existing directory"
            )
        return cls._from_store(open_store(directory))

    @classmethod
    def _from_store(
        cls,
        store: Store,
        *,
        filesystem: Any = None,
        verified: bool = False,
        kept: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        checkpoint = cls.__new__(cls)
        checkpoint._assign(store, filesystem)
        checkpoint._verified = verified
        checkpoint._kept = kept or {}
        return checkpoint

    def _assign(self, store: Store, filesystem: Any) -> None:
        self._store = store
        self._filesystem = filesystem
        # Whoever has just compared the bytes with the manifest, or written them, sets it: they are not read again.
        self._verified = False
        self._fingerprint: dict[str, os.stat_result] | None = None
        # Where this machine may have the files of a remote one, by path; only their digests tell.
        self._kept: Mapping[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        # On another machine such places lead to something else.
        return {**super().__getstate__(), "_kept": {}}

    def _without_secrets(self) -> dict[str, Any]:
        return {**self.__dict__, "_filesystem": without_credentials(self._filesystem)}

    @property
    def path(self) -> str:
        """Where it lies, without a trailing slash; absolute if it is local."""
        return self._store.url

    @property
    def filesystem(self) -> Any:
        """The file system object that it was made with, in which `path` is a path, or None."""
        return self._filesystem

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        if type(self._store) is not type(other._store) or self._store.url != other._store.url:
            return False
        # A path says nothing without the file system that it is in.
        one, another = self._filesystem, other._filesystem
        return one is None or another is None or bool(identity_of(one) == identity_of(another))

    def __hash__(self) -> int:
        return hash(self._store.url)

    @contextlib.contextmanager
    def as_directory(self, include: Sequence[str] | None = None) -> Iterator[str]:
        """The checkpoint as a local directory, to be read and not written.

        On a local path it is the directory itself. From elsewhere it is a copy that the processes of this machine
        share, made once and removed when the last of them leaves. Its bytes are compared with the manifest first,
        where there is one.

        Args:
            include: Only these files need to be there: paths, directories or patterns (`shard-*/*`). A copy is shared by those that ask
                for the same ones.

        Raises:
            StoreNotFoundError: There is no such checkpoint, or no such file in it.
            DamagedCheckpointError: Its bytes are not those that were reported; the text names the files.
            WaitTimeoutError: Another process did not finish its download in time.
        """
        self._tell()
        local = self._store.local_path()
        if local is not None:
            self._require()
            self._check_bytes(include)
            yield str(local)
            return
        # Here and not above: `import holdfast` is quick because what few scripts call is loaded when it is called.
        from holdfast.persistence.restore import shared_copy

        with shared_copy(self._store, self._manifest_or_listing(), include=include, kept=self._kept) as directory:
            yield str(directory)

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Copies the checkpoint into a local directory, verified on the way.

        Args:
            path: The directory; it appears whole, or, where it exists, each file of it does. By default a new one
                below the directory for temporary files.

        Returns:
            The directory's path.

        Raises:
            StoreNotFoundError: There is no such checkpoint.
            DamagedCheckpointError: Its bytes are not those that were reported; the text names the file.
            StorageError: The directory cannot be written.
        """
        from holdfast.persistence.download import copy_to

        self._tell()
        if path is None:
            import tempfile

            target = os.path.join(tempfile.gettempdir(), f"holdfast-checkpoint-{os.urandom(16).hex()}")
        else:
            target = os.path.abspath(os.path.expanduser(os.fspath(path)))
        self._require()
        if self._store.local_path() == Path(target):
            return target
        copy_to(self._store, self._manifest_or_listing(), Path(target), kept=self._kept)
        return target

    def files(self) -> list[StoredFile]:
        """What it holds, by path: from its manifest, or by looking where there is none.

        Raises:
            StoreNotFoundError: There is no such checkpoint.
        """
        manifest = self._manifest()
        if manifest is not None:
            return list(manifest.files)
        self._require()
        return list(list_files(self._store))

    def open(self, name: str) -> BinaryIO:
        """One file of it for reading, binary and seekable; its digest is not compared.

        Args:
            name: The file's path in the checkpoint.

        Raises:
            StoreNotFoundError: There is no such file.
            ConfigurationError: The name leads out of the checkpoint.
        """
        self._tell()
        parts = os.fspath(name).split("/")
        root = self._store.local_path()
        is_inside = not any(part in ("", ".", "..") for part in parts) and "\0" not in name
        if is_inside and root is not None:
            real_root = os.path.realpath(root)
            is_inside = os.path.realpath(os.path.join(real_root, name)).startswith(f"{real_root}/")
        if not is_inside:
            raise ConfigurationError(f"{name!r} leads out of the checkpoint {self.path!r}; give a path from files()")
        if name in self._kept:
            from holdfast.persistence.from_kept import open_from_kept

            file = next((file for file in self.files() if file.path == name), None)
            if file is not None and file.size_bytes <= _COPIED_BYTES:
                found = open_from_kept(self._kept, file)
                if found is not None:
                    return found
        return self._store.open_read(name)

    def verify(self) -> list[Damage]:
        """Reads the whole checkpoint and compares it with its manifest.

        Files that were registered in place in a bucket have no digest (`file.digest is None` in `files()`): of them the size alone is
        compared, and a warning says so.

        Returns:
            What is wrong; empty if all is as reported. A checkpoint without a manifest, and a digest that this version does not
            know, are listed too, with `is_certain=False`.

        Raises:
            StoreNotFoundError: There is no such checkpoint.
        """
        try:
            manifest = self._manifest()
        except FormatError as error:
            return [Damage(layout.MANIFEST, f"unreadable: {error}")]
        if manifest is None:
            self._require()
            reason = "missing: this directory was not committed by a report, so there are no digests to compare with"
            return [Damage(layout.MANIFEST, reason, is_certain=False)]
        without_digest = sum(file.kind == "file" and file.digest is None for file in manifest.files)
        if without_digest:
            _log.warning(
                "%s: only the sizes of %d of %d files were compared, as they were registered in place without a digest",
                self.path, without_digest, len(manifest.files),
            )  # fmt: skip
        return find_damage(self._store, "", manifest) + find_unknown(manifest)

    def get_metadata(self) -> dict[str, Any]:
        """The user's metadata; empty if none was set.

        Raises:
            FormatError: What lies there is no JSON object.
        """
        try:
            data = self._store.read(layout.METADATA)
        except StoreNotFoundError:
            self._require()
            return {}
        try:
            found = json.loads(data)
        except ValueError as error:
            raise FormatError(f"The metadata of {self.path!r} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise FormatError(f"The metadata of {self.path!r} is no JSON object but a {type(found).__name__}")
        return found

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replaces the user's metadata, in one step; also after the commit.

        Raises:
            TypeError: It is no mapping, or holds what JSON cannot.
            ValueError: It holds a NaN or an infinity.
        """
        if not isinstance(metadata, Mapping):
            raise TypeError(f"Metadata must be a mapping, not {type(metadata).__name__}")
        try:
            data = json.dumps(dict(metadata), allow_nan=False, indent=1).encode("utf-8", "surrogatepass")
        except TypeError as error:
            raise TypeError(f"The metadata of {self.path!r} must be JSON values: {error}") from error
        self._require()
        self._store.write(layout.METADATA, data)

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Adds to the user's metadata, and replaces what has the same keys.

        Raises:
            TypeError: It is no mapping, or holds what JSON cannot.
        """
        if not isinstance(metadata, Mapping):
            raise TypeError(f"Metadata must be a mapping, not {type(metadata).__name__}")
        self.set_metadata({**self.get_metadata(), **metadata})

    def _tell(self) -> None:
        if _listener is not None:
            _listener(self.path)

    def _require(self) -> None:
        local = self._store.local_path()
        if not (os.path.isdir(local) if local is not None else self._store.exists("")):
            raise StoreNotFoundError(
                f"There is no checkpoint at {self.path!r}; it was deleted (by retention?), or the path is wrong"
            )

    def _manifest(self) -> Manifest | None:
        return read_manifest(self._store)

    def _manifest_or_listing(self) -> Manifest:
        manifest = self._manifest()
        if manifest is not None:
            return manifest
        listed = listed_manifest(self._store)
        if not listed.files and self._store.local_path() is None:
            raise StoreNotFoundError(f"There is no checkpoint at {self.path!r}; the path is wrong, or it was deleted")
        return listed

    def _check_bytes(self, include: Sequence[str] | None) -> None:
        """Compares a local checkpoint with its manifest, unless that was done and no file was touched since."""
        if self._verified and include is None:
            return
        manifest = self._manifest()
        if manifest is None:
            if include is not None:
                select(list_files(self._store), include)
            return
        now = fingerprint(self._store, "", manifest)
        is_known = self._verified or all_untouched(self._fingerprint, now)
        damages = find_damage(self._store, "", manifest, digests=not is_known, include=include)
        if damages:
            named = "; ".join(str(damage) for damage in damages[:_NAMED_DAMAGES])
            more = f"; and {len(damages) - _NAMED_DAMAGES} more" if len(damages) > _NAMED_DAMAGES else ""
            raise DamagedCheckpointError(
                f"The checkpoint {self.path!r} is not what was reported: {named}{more}; use an older one"
            )
        if include is None:
            self._fingerprint = now
