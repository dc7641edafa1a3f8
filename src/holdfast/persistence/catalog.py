"""What a run holds, read from its storage alone, without a lock: for the driver that opens it and for any reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from holdfast.errors import FormatError, StorageError, StoreNotFoundError
from holdfast.metrics import merge_metrics
from holdfast.persistence import layout
from holdfast.persistence.manifest import decode_committed
from holdfast.persistence.notes import note_names, read_note
from holdfast.persistence.reads import NUM_AT_ONCE, read_many
from holdfast.records import CommittedCheckpoint, EpochRecord, Note, RunRecord
from holdfast.stores.base import Store

_epoch_decoder = msgspec.json.Decoder(EpochRecord)
_run_decoder = msgspec.json.Decoder(RunRecord)


@dataclass
class Catalog:
    """What lies in a run's storage.

    Attributes:
        checkpoints: Those that are valid and not known to be damaged, in report order.
        damaged: Why recovery skipped a valid one, by name.
        void: Names of checkpoints that a driver wrote after another had taken the run over.
        directories: Names of all directories that are not hidden, the user's own among them.
        problems: What could not be read, in words for a person.
        epoch: The newest epoch, or 0 where there is none.
        epochs: The epoch records that could be read, by number.
        notes: The notes of checkpoints in this catalog, by name.
        highest_report: The highest report index in any manifest, void and damaged ones too.
        highest_attempt: As `highest_report`.
        places: The place of each name in a ranking of which nobody says by what it ranks; a higher one is better.
    """

    checkpoints: list[CommittedCheckpoint] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    void: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    epoch: int = 0
    epochs: dict[int, EpochRecord] = field(default_factory=dict)
    notes: dict[str, Note] = field(default_factory=dict)
    highest_report: int = 0
    highest_attempt: int = 0
    places: dict[str, int] = field(default_factory=dict)

    @property
    def record(self) -> EpochRecord | None:
        """The newest epoch's record, or None where there is none that can be read."""
        return self.epochs.get(self.epoch)

    @property
    def pinned(self) -> frozenset[str]:
        """Names that retention must not delete."""
        return frozenset(name for name, note in self.notes.items() if note.pinned)


def load(store: Store) -> Catalog:
    """Reads what a run holds; what cannot be read becomes a problem in the catalog, never an error.

    Args:
        store: Rooted at the run's directory.

    Raises:
        StorageError: The store cannot be listed at all.
    """
    catalog = Catalog()
    load_epochs(store, catalog)
    names = _names(store)
    catalog.directories = set(names)
    found: dict[str, CommittedCheckpoint] = {}
    _read_all(store, names, catalog, found)
    for checkpoint in found.values():
        catalog.highest_report = max(catalog.highest_report, checkpoint.report_index)
        catalog.highest_attempt = max(catalog.highest_attempt, checkpoint.attempt)
    _take(store, catalog, found)
    return catalog


def load_newest(store: Store) -> Catalog:
    """Reads no more of a run than shows its newest checkpoint, the last one in the catalog.

    Names are in the order of reports where the user gave none of his own; else everything is read. (Not noticed is who names a later report
    as an earlier one would be named, below what is read here.)

    Raises:
        StorageError: The store cannot be listed at all.
    """
    names = _names(store)
    indices = {name: index for name in names if (index := layout.parse_checkpoint(name)) is not None}
    if len(indices) < len(names):
        return load(store)
    newest_first = sorted(names, key=lambda name: -indices[name])
    found: dict[str, CommittedCheckpoint] = {}
    num_read, num_next = 0, 1
    while True:
        catalog = Catalog()
        _load_newest_epoch(store, catalog)
        _read_all(store, newest_first[num_read : num_read + num_next], catalog, found)
        if any(each.report_index != indices[name] for name, each in found.items()):
            return load(store)  # the user names them so, too
        num_read += num_next
        _take(store, catalog, found)
        if catalog.checkpoints or num_read >= len(names):
            return catalog
        num_next = NUM_AT_ONCE


def _names(store: Store) -> list[str]:
    return [entry.key for entry in store.list() if entry.is_directory and not layout.is_hidden(entry.key)]


def _read_all(store: Store, names: list[str], catalog: Catalog, found: dict[str, CommittedCheckpoint]) -> None:
    """Adds the checkpoints of these names to those that were found, and what is wrong to the catalog."""
    for name, result in zip(names, read_many(store, lambda name: _read_committed(store, name), names), strict=True):
        if isinstance(result, str):
            catalog.problems.append(result)
            catalog.damaged[name] = result
        elif result is not None:
            found[name] = result


def _take(store: Store, catalog: Catalog, found: Mapping[str, CommittedCheckpoint]) -> None:
    """Fills the catalog with those of the checkpoints that are valid."""
    _judge(catalog, found)
    _merge_notes(store, catalog)
    catalog.checkpoints.sort(key=lambda checkpoint: (checkpoint.report_index, checkpoint.name))


def load_epochs(store: Store, catalog: Catalog) -> None:
    """Reads the epoch records into a catalog."""
    numbers = _epoch_numbers(store)
    _read_epochs(store, sorted(numbers), catalog)
    catalog.epoch = max(numbers, default=0)


def _load_newest_epoch(store: Store, catalog: Catalog) -> None:
    catalog.epoch = newest_epoch(store)
    _read_epochs(store, [catalog.epoch] if catalog.epoch else [], catalog)


def _read_epochs(store: Store, numbers: list[int], catalog: Catalog) -> None:
    def read(number: int) -> EpochRecord | str:
        try:
            return read_epoch(store, number)
        except (FormatError, StorageError) as error:
            return str(error)

    for number, record in zip(numbers, read_many(store, read, numbers), strict=True):
        if isinstance(record, str):
            catalog.problems.append(record)
        else:
            catalog.epochs[number] = record


def newest_epoch(store: Store) -> int:
    """The number of the newest epoch, or 0 where there is none. One listing.

    Raises:
        StorageError: The store cannot be listed.
    """
    return max(_epoch_numbers(store), default=0)


def read_epoch(store: Store, number: int) -> EpochRecord:
    """One epoch's record.

    Raises:
        FormatError: It cannot be understood.
        StorageError: It cannot be read.
    """
    where = f"{store.url}/{layout.epoch_key(number)}"
    try:
        record = _epoch_decoder.decode(store.read(layout.epoch_key(number)))
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError(f"{where} is no epoch record that Holdfast can read: {error}") from error
    return record


def _epoch_numbers(store: Store) -> list[int]:
    names = (entry.key.rpartition("/")[2] for entry in store.list(layout.EPOCHS))
    return [number for name in names if (number := layout.parse_epoch(name)) is not None]


def read_run_record(store: Store) -> RunRecord | None:
    """`run.json`, or None where there is none, or none that can be read: a run works without."""
    try:
        return _run_decoder.decode(store.read(layout.RUN_RECORD))
    except (StoreNotFoundError, msgspec.DecodeError, RecursionError):
        return None


def _read_committed(store: Store, name: str) -> CommittedCheckpoint | str | None:
    """A checkpoint; or what is wrong with its manifest; or None for a directory that is no checkpoint."""
    key = layout.manifest_key(name)
    try:
        return decode_committed(store.read(key), f"{store.url}/{key}")
    except StoreNotFoundError:
        return None
    except (FormatError, StorageError) as error:
        return str(error)


def _judge(catalog: Catalog, found: Mapping[str, CommittedCheckpoint]) -> None:
    """Tells valid checkpoints from what a stalled driver wrote after it had been replaced."""
    record = catalog.record
    if record is None:
        # No epochs: directories that were copied here by hand. Or the newest record is unreadable, and what it
        # adopted is unknown: to take all is to risk a void one, to take none is to lose the run.
        catalog.checkpoints = [msgspec.structs.replace(checkpoint, name=name) for name, checkpoint in found.items()]
        return
    adopted = {(entry.name, entry.id) for entry in record.adopted}
    for name, checkpoint in found.items():
        # A copy that someone made under another name is theirs: no retention may delete it.
        if checkpoint.name != name:
            continue
        # An epoch above the newest record: a loss of power took the record, not the checkpoint.
        if checkpoint.epoch >= catalog.epoch or (checkpoint.name, checkpoint.id) in adopted:
            catalog.checkpoints.append(checkpoint)
        else:
            catalog.void.add(checkpoint.name)


def _merge_notes(store: Store, catalog: Catalog) -> None:
    noted = note_names(store)
    valid = {checkpoint.name: checkpoint for checkpoint in catalog.checkpoints}
    wanted = [name for name in valid if name in noted]

    def read(name: str) -> Note | str | None:
        try:
            return read_note(store, name)
        except StoreNotFoundError:
            return None
        except StorageError as error:
            return str(error)

    always_durable = store.capabilities.durable_writes
    for name, note in zip(wanted, read_many(store, read, wanted), strict=True):
        if isinstance(note, str):
            catalog.problems.append(note)
        # A note for another id is of an earlier checkpoint that had this name.
        elif note is not None and note.id == valid[name].id:
            catalog.notes[name] = note
            if note.damaged is not None:
                catalog.damaged[name] = note.damaged
                del valid[name]
                continue
            if note.durable and not always_durable:
                valid[name] = msgspec.structs.replace(valid[name], durable=True)
            if bytes(note.validation_metrics) != b"null":
                valid[name] = _with_validation(valid[name], note, catalog)
    catalog.checkpoints = (
        [msgspec.structs.replace(checkpoint, durable=True) for checkpoint in valid.values()]
        if always_durable
        else list(valid.values())
    )


def _with_validation(checkpoint: CommittedCheckpoint, note: Note, catalog: Catalog) -> CommittedCheckpoint:
    try:
        metrics = merge_metrics(checkpoint.metrics, note.validation_metrics)
    except FormatError as error:
        catalog.problems.append(f"the validation of {checkpoint.name}: {error}")
        return checkpoint
    return msgspec.structs.replace(checkpoint, metrics=metrics)
