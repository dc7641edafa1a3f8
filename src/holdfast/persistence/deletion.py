"""Takes a checkpoint away so that no reader ever sees half of it."""

from __future__ import annotations

import logging
import secrets

from holdfast.errors import FormatError, StoreExistsError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.manifest import decode_committed
from holdfast.stores.base import Store

_log = logging.getLogger("holdfast")


def delete_checkpoint(store: Store, name: str, checkpoint_id: str) -> None:
    """Deletes a checkpoint, whatever of it is gone already; safe to repeat.

    Args:
        checkpoint_id: Which checkpoint of that name is meant: another one is left alone.

    Raises:
        StorageError: The store refused; `delete_checkpoint` again, or the next start of the run, finishes it.
    """
    if not _is_meant(store, name, checkpoint_id):
        return
    if store.capabilities.atomic_rename:
        trash = layout.deleting_name(name, secrets.token_hex(8))
        try:
            # Dying on the next line leaves a hidden directory, which the next start collects; readers see none of it.
            store.rename(name, trash)
        except StoreNotFoundError:
            _log.debug("checkpoint %s of %s was gone before its turn to be deleted", name, store.url)
        else:
            store.delete_tree(trash)
    else:
        # Dying on the next line deletes nothing: the manifest is there, so the mark means nothing yet.
        store.write(layout.pending_key(name), b"{}")
        # Dying on the next line leaves files without a manifest: no checkpoint, and the mark says that they are ours.
        store.delete(layout.manifest_key(name))
        store.delete_tree(name)
        store.delete(layout.pending_key(name))
    # Last, for a note without its checkpoint harms nobody, and the next start collects it.
    store.delete(layout.note_key(name))


def set_aside(store: Store, name: str) -> None:
    """Moves what lies at `name` out of the way, kept for a person to look at, so that the name is free again.

    Raises:
        StorageError: The store refused, or cannot rename.
        StoreExistsError: The store cannot rename, so the name stays taken.
    """
    if not store.capabilities.atomic_rename:
        raise StoreExistsError(f"{store.url} cannot rename, so {name!r} stays taken until it is deleted by hand")
    try:
        # Dying on the next line leaves the name free and the remains hidden: readers took neither for valid.
        store.rename(name, layout.damaged_name(name, secrets.token_hex(8)))
    except StoreNotFoundError:
        _log.debug("%s of %s was gone before it could be set aside", name, store.url)
    store.delete(layout.note_key(name))


def _is_meant(store: Store, name: str, checkpoint_id: str) -> bool:
    key = layout.manifest_key(name)
    try:
        found = decode_committed(store.read(key), f"{store.url}/{key}")
    except StoreNotFoundError:
        # Gone, or (without rename) half gone in an earlier try: only our own mark allows to finish that.
        return not store.capabilities.atomic_rename and store.exists(layout.pending_key(name))
    except FormatError as error:
        _log.warning("%s is not deleted: it cannot be told which checkpoint it is (%s)", name, error)
        return False
    if found.id != checkpoint_id:
        _log.warning("%s in %s is another checkpoint than the one that retention let go of; kept", name, store.url)
    return found.id == checkpoint_id
