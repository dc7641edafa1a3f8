"""The one write that makes a checkpoint exist: a rename where the store can, else the creation of its manifest."""

from __future__ import annotations

from holdfast.errors import CheckpointExistsError, FormatError, StorageError, StoreExistsError
from holdfast.persistence import layout
from holdfast.persistence.manifest import committed_of, encode_manifest, read_manifest
from holdfast.records import CommittedCheckpoint, Manifest
from holdfast.stores.base import Store


def place_of(store: Store, name: str, epoch: int, attempt: int) -> str:
    """The prefix that a checkpoint's files are stored under before it exists."""
    return layout.partial_name(name, epoch, attempt) if store.capabilities.atomic_rename else name


def commit(
    store: Store, *, partial: str, manifest: Manifest, metadata: str | None, strict: bool = False
) -> CommittedCheckpoint:
    """Makes the files at `partial` the checkpoint `manifest.name`.

    Args:
        store: Rooted at the run's directory.
        partial: What `place_of` gave; the checkpoint's own name where files were registered in place.
        metadata: User metadata as JSON text.
        strict: Flushes all of it to disk before it can be seen; `make_durable` then flushes the new name.

    Raises:
        CheckpointExistsError: Something lies under that name; what is at `partial` is untouched.
        StorageError: The store failed, and the checkpoint does not exist.
    """
    if metadata is not None:
        # Dying on the next line leaves a directory without a manifest: no checkpoint, and the next start collects it.
        store.write(layout.metadata_key(partial), metadata.encode())
    if partial == manifest.name:
        _create_manifest(store, manifest)
    else:
        # Dying on the next line leaves a whole checkpoint under a hidden name, which no reader takes for one.
        store.write(layout.manifest_key(partial), encode_manifest(manifest))
        if strict:
            store.sync(partial, files_of(manifest, partial, metadata=metadata is not None))
        _rename(store, partial, manifest)
    return committed_of(manifest)


def make_durable(store: Store, *, partial: str, manifest: Manifest, metadata: str | None) -> None:
    """What is left, after a strict commit, for the checkpoint to survive a loss of power.

    Raises:
        StorageError: The disk refused. The checkpoint exists, and may not survive.
    """
    in_place = partial == manifest.name
    # Of what was renamed only the new name is not on disk yet; of what was created in place, nothing is.
    store.sync(manifest.name, files_of(manifest, partial, metadata=metadata is not None) if in_place else [])


def files_of(manifest: Manifest, prefix: str, *, metadata: bool) -> list[str]:
    """The keys of everything in a checkpoint that a disk must have.

    Args:
        metadata: Whether it has user metadata, which no manifest lists.
    """
    keys = [f"{prefix}/{layout.decode_path(file.path)}" for file in manifest.files]
    keys.append(layout.manifest_key(prefix))
    if metadata:
        keys.append(layout.metadata_key(prefix))
    return keys


def _rename(store: Store, partial: str, manifest: Manifest) -> None:
    try:
        # Before this line readers see nothing of the checkpoint, after it all of it; there is no instant between.
        store.rename(partial, manifest.name)
    except StoreExistsError as error:
        raise taken(store, manifest.name) from error
    except StorageError:
        # A network file system may repeat a rename whose answer it lost, and then find nothing to rename.
        if not _is_ours(store, manifest):
            raise


def _create_manifest(store: Store, manifest: Manifest) -> None:
    try:
        # Before this line readers see files without a manifest, which are no checkpoint; after it all of it.
        store.create(layout.manifest_key(manifest.name), encode_manifest(manifest))
    except StorageError as error:
        # The first answer to our own write may have been lost on the way, and the write repeated.
        if _is_ours(store, manifest):
            return
        if isinstance(error, StoreExistsError):
            raise taken(store, manifest.name) from error
        raise


def _is_ours(store: Store, manifest: Manifest) -> bool:
    try:
        found = read_manifest(store.child(manifest.name))
    except FormatError:
        return False
    return found is not None and found.id == manifest.id


def taken(store: Store, name: str) -> CheckpointExistsError:
    """The error for a name that something else holds."""
    return CheckpointExistsError(
        f"the run at {store.url} has a checkpoint or directory {name!r} already; pass another checkpoint_dir_name, or "
        "none, to `report` (names are never used twice while the first holder exists)"
    )
