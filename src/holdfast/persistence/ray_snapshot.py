"""What Ray Train says of the checkpoints of one of its runs: one JSON file, which it writes anew, in place, at each of them.

Known from runs of Ray Train 2.60 (V2). The file names each checkpoint that is kept, in the order of its ranking, with its metrics, the number
of its report and the state of its validation. It names neither the attempt nor the time of a report, nor any digest.
"""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from holdfast.errors import FormatError, StoreNotFoundError
from holdfast.records import Record
from holdfast.stores.base import Store

SNAPSHOT = "checkpoint_manager_snapshot.json"
_VERSION = 0
# Who reads while Ray Train writes finds half of it, or nothing, and all of it a moment later.
_TRIES = 5
_PAUSE_S = 0.2
_NAMED = 10


class RayCheckpoint(Record, frozen=True):
    """One checkpoint of a snapshot."""

    checkpoint_dir_name: str
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    version: int = _VERSION


class Snapshot(Record, frozen=True):
    """The file's content, of which Ray Train has chosen the names.

    Attributes:
        checkpoint_results: From the worst to the best, as the run ranked them; by age where it ranked by nothing.
        checkpoint_report_indices: The report of each, counted from 0; missing in what earlier versions wrote.
        latest_checkpoint_result: One of them.
        pending_training_results: Those of them whose validation has no outcome yet.
    """

    checkpoint_results: list[RayCheckpoint]
    checkpoint_report_indices: list[int] | None = None
    latest_checkpoint_result: RayCheckpoint | None = None
    pending_training_results: tuple[RayCheckpoint, ...] = ()
    validated_checkpoint_dir_names: tuple[str, ...] = ()
    timed_out_validation_checkpoint_dir_names: tuple[str, ...] = ()
    failed_validation_checkpoint_dir_names: tuple[str, ...] = ()


def has_snapshot(store: Store) -> bool:
    """Whether the root of a store is the directory of a run of Ray Train's. One request.

    Raises:
        StorageError: The store did not say.
    """
    try:
        store.read(SNAPSHOT)
    except StoreNotFoundError:
        return False
    return True


def read_snapshot(store: Store) -> Snapshot:
    """The snapshot of the run at the root of a store.

    Raises:
        FormatError: It is torn, or no snapshot that is known here; the text names the checkpoints' directories.
        StorageError: It cannot be read.
    """
    where = f"{store.url}/{SNAPSHOT}"
    for left in reversed(range(_TRIES)):
        data = store.read(SNAPSHOT)
        try:
            # Not msgspec, which refuses the NaN and Infinity that Python's own JSON has.
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            if not left:
                raise FormatError(
                    f"{where} is torn ({error}): Ray Train writes it in place, and was killed while it did. {_what_is_left(store)}"
                ) from error
            time.sleep(_PAUSE_S)
        else:
            return _checked(store, where, found)
    raise AssertionError("unreachable")


def _checked(store: Store, where: str, found: object) -> Snapshot:
    try:
        snapshot = msgspec.convert(found, Snapshot)
    except msgspec.ValidationError as error:
        raise FormatError(
            f"{where} is no snapshot of Ray Train's that is known here ({error}). {_what_is_left(store)}"
        ) from error
    newest = max((each.version for each in snapshot.checkpoint_results), default=_VERSION)
    if newest > _VERSION:
        raise FormatError(
            f"{where} has records of version {newest}, and this Holdfast knows those of Ray Train up to version {_VERSION}: upgrade with: "
            f"pip install -U holdfast. {_what_is_left(store)}"
        )
    indices = snapshot.checkpoint_report_indices
    if indices is not None and len(indices) != len(snapshot.checkpoint_results):
        raise FormatError(
            f"{where} contradicts itself: {len(snapshot.checkpoint_results)} checkpoints of {len(indices)} reports. {_what_is_left(store)}"
        )
    return snapshot


def _what_is_left(store: Store) -> str:
    names = sorted(entry.key for entry in store.list() if entry.is_directory and not entry.key.startswith("."))
    if not names:
        return "There is no checkpoint beside it"
    named = ", ".join(names[-_NAMED:])
    return (
        f"The directories beside it may be whole checkpoints: {'…, ' if len(names) > _NAMED else ''}{named}. Read one of them with "
        "Checkpoint(path), or go on from it with resume_from=path"
    )
