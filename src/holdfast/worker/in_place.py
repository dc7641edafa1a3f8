"""Checkpoints that somebody else stores at their final place: the user (`NO_UPLOAD`), or a function of theirs (`checkpoint_upload_fn`)."""

from __future__ import annotations

import os
from collections.abc import Callable

from holdfast.checkpoint import Checkpoint
from holdfast.errors import CheckpointSourceError
from holdfast.persistence import layout
from holdfast.persistence.staging import check_directory
from holdfast.records import StagedShard
from holdfast.signatures import check_takes
from holdfast.worker.context import WorkerState

UploadFunction = Callable[[Checkpoint, str], Checkpoint]


def chosen_name(state: WorkerState, name: str | None, upload: UploadFunction) -> str:
    """Under which name the function is to store the next report's checkpoint.

    Args:
        name: The user's own, if there is one.

    Raises:
        ConfigurationError: The function does not take what it is given.
    """
    check_takes(upload, 2, "report(checkpoint_upload_fn=...)", "checkpoint, name")
    # What a dead attempt uploaded under a name of ours must not mix with what this one does.
    return name or layout.uploaded_name(state.next_report, state.job.attempt)


def stored_by_user(checkpoint: Checkpoint, name: str, upload: UploadFunction) -> Checkpoint:
    """What the user's function has stored.

    Raises:
        CheckpointSourceError: It returned something else.
    """
    stored = upload(checkpoint, name)
    if not isinstance(stored, Checkpoint):
        raise CheckpointSourceError(
            f"checkpoint_upload_fn returned {type(stored).__name__}; it must return the stored Checkpoint"
        )
    return stored


def registered(state: WorkerState, checkpoint: Checkpoint, name: str | None) -> tuple[str, StagedShard]:
    """A checkpoint that lies directly in the run's directory: its directory's name, and this rank's shard of it.

    Raises:
        CheckpointSourceError: It lies elsewhere, or is no directory.
    """
    found = _name_in_run(state, checkpoint, name)
    # Other ranks may still be writing there: the driver looks at it once all have come.
    if state.run.local_path() is not None:
        check_directory(checkpoint.path)
    return found, StagedShard(rank=state.job.rank, root=layout.encode_path(checkpoint.path), files=())


def expected(state: WorkerState, name: str) -> StagedShard:
    """This rank's shard of what is about to be stored under that name."""
    place = state.context.get_storage().build_checkpoint_path_from_name(name)
    return StagedShard(rank=state.job.rank, root=layout.encode_path(place), files=())


def _name_in_run(state: WorkerState, checkpoint: Checkpoint, name: str | None) -> str:
    run, place = state.job.run_url, checkpoint.path
    if state.run.local_path() is not None:
        run, place = os.path.realpath(run), os.path.realpath(place)
    parent, _, found = place.rpartition("/")
    if parent != run.rstrip("/") or (name is not None and name != found):
        right = f"{state.job.run_url}/{name or '<name>'}"
        raise CheckpointSourceError(
            f"the checkpoint {checkpoint.path} was to be registered without copying, but does not lie at {right}; write "
            "it to get_context().get_storage().build_checkpoint_path_from_name(name), or let report copy it (SYNC)"
        )
    return layout.check_name(found, "the directory name of a checkpoint registered in place")
