"""What lies at a path: a run, and whose; nothing that is known here; or runs, one level further down."""

from __future__ import annotations

from holdfast.errors import ConfigurationError, RunNotFoundError, StorageError
from holdfast.persistence import layout
from holdfast.persistence.ray_run import RayRun
from holdfast.persistence.ray_snapshot import SNAPSHOT, has_snapshot
from holdfast.persistence.reading import OwnRun, RunReader
from holdfast.stores.base import Store

_NAMED_RUNS = 10
# Files of Ray Tune, and of Ray Train before its V2, which keep their checkpoints otherwise.
_OF_TUNE = ("result.json", "progress.csv", "tuner.pkl", "trainer.pkl")


def open_run(store: Store) -> RunReader:
    """The run at the root of a store.

    Raises:
        RunNotFoundError: No run lies there.
        StorageError: The store cannot be looked at.
    """
    found = find_run(store)
    if found is None:
        what = "holds no run" if store.exists("") else "does not exist"
        raise RunNotFoundError(f"{store.url} {what}; a run lies at <storage_path>/<name>, as `Result.path` says")
    return found


def find_run(store: Store) -> RunReader | None:
    """The run at the root of a store, or None where there is nothing that is known here.

    Raises:
        RunNotFoundError: Runs lie one level further down, or what lies there was written by a program that is not read here.
        StorageError: The store cannot be looked at.
    """
    if store.exists(layout.PRIVATE):
        return OwnRun(store)
    entries = list(store.list())
    files = {entry.key for entry in entries if not entry.is_directory}
    if SNAPSHOT in files:
        return RayRun(store)
    directories = [entry.key for entry in entries if entry.is_directory and not layout.is_hidden(entry.key)]
    # Checkpoints that were copied away from their run are still worth reading.
    if any(store.exists(layout.manifest_key(name)) for name in directories):
        return OwnRun(store)
    runs = sorted(
        name for name in directories if store.exists(f"{name}/{layout.PRIVATE}") or store.exists(f"{name}/{SNAPSHOT}")
    )
    if runs:
        named = ", ".join(runs[:_NAMED_RUNS]) + (", …" if len(runs) > _NAMED_RUNS else "")
        raise RunNotFoundError(f"{store.url} is no run but a directory of runs; give one of them: {named}")
    if files.intersection(_OF_TUNE):
        raise RunNotFoundError(
            f"{store.url} is of Ray Tune, or of a Ray Train before its V2, whose runs are not read here; its checkpoints are, one by one: "
            f"Checkpoint('{store.url}/checkpoint_…')"
        )
    return None


def refuse_foreign(store: Store) -> None:
    """Looks, before anything is written, whether a directory that is to be driven is a run of somebody else's.

    Raises:
        ConfigurationError: It is one of Ray Train's.
    """
    try:
        is_foreign = has_snapshot(store) and not store.exists(layout.PRIVATE)
    except StorageError:
        return  # what is wrong with the store is said by those who are about to write to it
    if is_foreign:
        raise ConfigurationError(
            f"{store.url} is a run of Ray Train's, which is only read here. To go on from its latest checkpoint give the new run another "
            f"name or storage_path, and the trainer resume_from={store.url!r}"
        )
