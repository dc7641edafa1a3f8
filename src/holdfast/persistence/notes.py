"""Notes: what changes about a checkpoint after its commit, in a record of its own that may be lost without harm."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from holdfast.errors import StorageError
from holdfast.persistence import layout
from holdfast.records import CommittedCheckpoint, Note
from holdfast.stores.base import Store

_log = logging.getLogger("holdfast")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Note)


def read_note(store: Store, name: str) -> Note | None:
    """The note of the checkpoint `name`, or None where it cannot be read: it holds nothing that must be known.

    Raises:
        StorageError: The store failed, or there is no such note.
    """
    data = store.read(layout.note_key(name))
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        _log.warning("%s/%s cannot be read (%s); it is taken as absent", store.url, layout.note_key(name), error)
        return None


def write_note(store: Store, name: str, note: Note) -> None:
    """Replaces the note of the checkpoint `name`.

    If the process dies before this returns, readers see the old note or the new one; the checkpoint is the same.
    """
    store.write(layout.note_key(name), _encoder.encode(note))


def note_names(store: Store) -> set[str]:
    """The names of the checkpoints that have a note."""
    names = (entry.key.rpartition("/")[2] for entry in store.list(layout.NOTES) if not entry.is_directory)
    return {name.removesuffix(".json") for name in names if name.endswith(".json") and not layout.is_hidden(name)}


class NoteKeeper:
    """The driver's notes: it alone writes them, so it knows what they hold. Safe for threads."""

    def __init__(self, store: Store, notes: Mapping[str, Note]) -> None:
        self._store = store
        self._notes = dict(notes)
        self._lock = threading.Lock()

    def update(self, checkpoint: CommittedCheckpoint, **changes: Any) -> None:
        """Changes fields of a checkpoint's note, in storage too where that answers.

        A store that refuses is logged, no more: a note holds nothing that a checkpoint depends on.
        """
        with self._lock:
            note = self._notes.get(checkpoint.name)
            if note is None or note.id != checkpoint.id:
                note = Note(id=checkpoint.id)
            note = self._notes[checkpoint.name] = msgspec.structs.replace(note, **changes)
            try:
                write_note(self._store, checkpoint.name, note)
            except StorageError as error:
                _log.warning("the note of checkpoint %s could not be written: %s", checkpoint.name, error)

    def get(self, checkpoint: CommittedCheckpoint) -> Note | None:
        """The checkpoint's note, where it has one."""
        note = self._notes.get(checkpoint.name)
        return note if note is not None and note.id == checkpoint.id else None

    def forget(self, name: str) -> None:
        """The checkpoint is deleted, and its note with it."""
        with self._lock:
            self._notes.pop(name, None)
