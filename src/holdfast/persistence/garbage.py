"""What dead drivers left behind, and nothing else: a user's own files in a run's directory are not ours to judge."""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.errors import StorageError
from holdfast.persistence import layout
from holdfast.persistence.notes import note_names
from holdfast.stores.base import Store
from holdfast.stores.local_write import is_temporary_name

_log = logging.getLogger("holdfast")


def collect(store: Store, *, epoch: int) -> list[str]:
    """Removes left-overs at the start of a run; to be called by its driver alone.

    Only what no reader takes for a checkpoint is touched, so dying on any line of this harms nothing; what resists
    is logged and left for the next start.

    Args:
        epoch: The driver's own: what it is writing itself stays.

    Returns:
        The keys that were removed.
    """
    removed: list[str] = []

    def remove(key: str, how: Callable[[str], None]) -> None:
        try:
            how(key)
        except StorageError as error:
            _log.warning(
                "%s/%s is a left-over that could not be removed (%s); the next start tries again", store.url, key, error
            )
        else:
            removed.append(key)

    directories = set()
    for entry in store.list():
        if not entry.is_directory:
            if is_temporary_name(entry.key):
                remove(entry.key, store.delete)
            continue
        directories.add(entry.key)
        partial = layout.parse_partial(entry.key)
        if layout.is_deleting(entry.key) or (partial is not None and partial[1] != epoch):
            remove(entry.key, store.delete_tree)
    if store.exists(layout.STAGING):
        remove(layout.STAGING, store.delete_tree)
    for entry in store.list(layout.PRIVATE, recursive=True):
        if is_temporary_name(entry.key.rpartition("/")[2]):
            remove(entry.key, store.delete)
    for entry in store.list(layout.PENDING):
        name = entry.key.rpartition("/")[2].removesuffix(".json")
        if name and not layout.is_hidden(name):
            # First, or what is completed late comes back behind its deletion. The mark says where to look, and stays if nobody could.
            have_ended = True
            try:
                store.give_up_uploads(name)
            except StorageError as error:
                _log.warning("%s; the next start tries again", error)
                have_ended = False
            # With a manifest the checkpoint was committed, or its deletion had not begun: only the mark is stale.
            if not store.exists(layout.manifest_key(name)):
                remove(name, store.delete_tree)
                directories.discard(name)
            if have_ended:
                remove(entry.key, store.delete)
    for name in note_names(store) - directories:
        remove(layout.note_key(name), store.delete)
    return removed
