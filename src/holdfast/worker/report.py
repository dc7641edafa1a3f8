"""`report` and what goes with it: the worker's side of the pipeline."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_member
from holdfast.config import CheckpointConsistencyMode, CheckpointUploadMode, ValidationTaskConfig
from holdfast.errors import CheckpointSourceError, ConfigurationError
from holdfast.metrics import decode_metrics, encode_metrics, score_of
from holdfast.persistence import layout
from holdfast.persistence.staging import check_directory, stage
from holdfast.records import StagedShard
from holdfast.reported import ReportedCheckpoint, status_of
from holdfast.signatures import check_takes
from holdfast.urls import has_options
from holdfast.worker import protocol
from holdfast.worker.answers import expect
from holdfast.worker.channel import Asked
from holdfast.worker.context import WorkerState, current
from holdfast.worker.handover import HandOver
from holdfast.worker.pending import PendingCheckpoint
from holdfast.worker.staging_directory import handed_over, is_staging, remember_size
from holdfast.worker.validation import pack_arguments

UploadFunction = Callable[[Checkpoint, str], Checkpoint]


def report(
    metrics: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
    checkpoint_dir_name: str | None = None,
    checkpoint_upload_mode: CheckpointUploadMode = CheckpointUploadMode.SYNC,
    delete_local_checkpoint_after_upload: bool | None = None,
    checkpoint_upload_fn: UploadFunction | None = None,
    validation: bool | ValidationTaskConfig = False,
) -> PendingCheckpoint:
    """Reports metrics, and a checkpoint if there is one. Every rank must call it equally often.

    All ranks' files merge into one directory; rank 0's metrics go with it. When it returns in `SYNC` mode the
    checkpoint is committed, on every rank, and survives the death of every process.

    In `ASYNC` mode it returns at once and training goes on. The node then holds the files open: the directory may be
    deleted and the worker may die. The checkpoint is committed once every rank has made the report and its bytes are
    stored, in the order of the reports. It waits, and says so, while more than
    `RunConfig.max_pending_checkpoints` are on their way. What cannot be stored is an error of a later `report`.

    Args:
        metrics: JSON values; NumPy values and tensors of one element are converted; copied at the call.
        checkpoint: The directory to store, on each rank that has something to store.
        checkpoint_dir_name: Its directory's name in the run; the same on every rank, and new.
            `checkpoint_000007` by default.
        checkpoint_upload_mode: How it gets into storage.
        delete_local_checkpoint_after_upload: The directory may be taken over without copying and is gone
            afterwards. True only for `ASYNC` and for a `staging_directory` unless said.
        checkpoint_upload_fn: `fn(checkpoint, name) -> Checkpoint` stores this rank's files itself, below
            `get_context().get_storage().build_checkpoint_path_from_name(name)`, and returns where.
        validation: Whether the checkpoint is validated beside training, by the function of the trainer's
            `ValidationConfig`; a `ValidationTaskConfig` gives arguments and a time limit of its own. It is kept until that has an
            outcome. One rank's wish is enough; the lowest rank's counts. Some rank must report a checkpoint.

    Returns:
        A `PendingCheckpoint`: done, or in `ASYNC` mode on its way.

    Raises:
        OutsideWorkerError: Called outside a training function.
        MetricsError: A metric is no JSON value, or the score attribute is no number.
        CheckpointSourceError: The directory is missing, is a file, or holds what cannot be stored.
        CheckpointExistsError: The name is taken.
        EmptyCheckpointError: No rank's directory holds a file.
        ShardCollisionError: Two ranks reported different bytes under one name.
        ShardModifiedError: A file changed while it was being stored.
        UnevenCallsError: A rank returned, or waits in another call.
        StorageError: The store failed for good.
    """
    state = current("report()")
    task = _validation_task(state, validation)
    check_member("report(checkpoint_upload_mode=...)", checkpoint_upload_mode, CheckpointUploadMode)
    waits = checkpoint_upload_mode is not CheckpointUploadMode.ASYNC
    encoded = _encoded(state, metrics)
    state.catch_up()
    # A name of the user's may be taken, which is an error of this call.
    asks_ahead = checkpoint is not None and not waits and checkpoint_dir_name is None and checkpoint_upload_fn is None
    asked = state.channel.ask_ahead(protocol.AdmissionCall(state.next_report)) if asks_ahead else None
    call = protocol.ReportCall(state.next_report, encoded, waits=waits)
    if checkpoint is not None:
        call = _with_checkpoint(
            state,
            call,
            checkpoint,
            checkpoint_dir_name,
            checkpoint_upload_mode,
            delete_local_checkpoint_after_upload,
            checkpoint_upload_fn,
        )
    if task is not None or state.ignores_checkpoint:
        call = msgspec.structs.replace(call, validation=task, ignores_checkpoint=state.ignores_checkpoint)
    if state.saved_into is not None:
        call = _with_state(state, call)
    if not waits:
        return _go_on(state, call, asked)
    answer = state.take(state.channel.ask(call))
    return PendingCheckpoint(state.checkpoint if answer.checkpoint is not None else None)


def _encoded(state: WorkerState, metrics: Mapping[str, Any]) -> bytes:
    encoded = encode_metrics(metrics)
    if state.job.score_attribute is not None:
        score_of(decode_metrics(encoded), state.job.score_attribute)
    return encoded


def _go_on(state: WorkerState, call: protocol.ReportCall, asked: Asked | None) -> PendingCheckpoint:
    """Makes a report that returns before it is committed; its files are handed over, open.

    Args:
        asked: Whether it may return before its answer comes was asked before its directory was looked at. So the driver's time and
            the wake-ups of both processes pass while the files are looked at and opened.
    """
    state.inbox.look()  # outcomes that nobody asks for must not pile up
    # Before the call: its outcome may come right behind the answer, and what nobody expects is forgotten.
    pending = state.inbox.expect(call.index)
    shard = call.shard if call.hands_over else None
    if shard is None:
        state.take(state.channel.ask(call))
        return pending
    with contextlib.closing(HandOver(state.files, call.index, shard)) as files:
        if asked is not None:
            files.open_first()
        admitted = asked is not None and expect(state.channel.answer_to(asked), protocol.Admission).admitted
        try:
            if admitted:
                state.unread = state.channel.ask_ahead(msgspec.structs.replace(call, admitted=True))
            else:
                state.take(state.channel.ask(call, files.open_first))
            files.send()
        except BaseException as error:
            # An interrupt, too: the function may go on after it, and the node would wait for the files for ever. Of a report that was
            # not made it waits for none: they are those of the next.
            if state.next_report > call.index:
                files.abandon(error)
            raise
    if shard.remove:
        handed_over(state, layout.decode_path(shard.root))
    return pending


def _validation_task(state: WorkerState, wish: bool | ValidationTaskConfig) -> protocol.ValidationTask | None:
    if wish is False:
        return None
    if wish is not True and not isinstance(wish, ValidationTaskConfig):
        raise ConfigurationError(f"report(validation=...) takes True, False or a ValidationTaskConfig, not {wish!r}")
    if state.job.validation is None:
        raise ConfigurationError(
            "report(validation=...) asks for a validation, but the trainer has no function for it; pass "
            "validation_config=ValidationConfig(fn=...) to the trainer"
        )
    terms = state.job.validation
    if wish is True or wish.fn_kwargs is None:
        # The trainer's arguments, which it may have none of because every report was to give its own.
        terms.keywords.check_all(terms.given, "ValidationConfig.task_config: fn_kwargs")
    else:
        terms.keywords.check_all(wish.fn_kwargs, "report(validation=...): fn_kwargs")
    if wish is True:
        return protocol.ValidationTask()
    return protocol.ValidationTask(pack_arguments(wish, "report(validation=...)"), wish.timeout_s)


def _with_state(state: WorkerState, call: protocol.ReportCall) -> protocol.ReportCall:
    """Says whether the rank's part of a state, saved before, comes with this report."""
    reported = [file.path for file in call.shard.files] if call.shard is not None else []
    if call.in_place and call.shard is not None:
        root = layout.decode_path(call.shard.root)
        reported = [name for name in state.saved_files if os.path.lexists(f"{root}/{name}")]
    # By the files, not by the directory: it may have been copied, or be a part of the one that is reported.
    brings = all(any(path == name or path.endswith(f"/{name}") for path in reported) for name in state.saved_files)
    if brings or not os.path.isdir(state.saved_into or ""):
        state.saved_into = None
    return msgspec.structs.replace(call, brings_state=True if brings else False if state.saved_into else None)


def _with_checkpoint(
    state: WorkerState,
    call: protocol.ReportCall,
    checkpoint: Checkpoint,
    name: str | None,
    mode: CheckpointUploadMode,
    delete_local: bool | None,
    upload: UploadFunction | None,
) -> protocol.ReportCall:
    if not isinstance(checkpoint, Checkpoint):
        raise CheckpointSourceError(
            f"report(checkpoint=...) takes a holdfast.Checkpoint, not {type(checkpoint).__name__}; "
            "make one with Checkpoint.from_directory(path)"
        )
    if name is not None:
        layout.check_name(name, "report(checkpoint_dir_name=...)")
        if "?" in name and has_options(state.job.storage_url):
            raise ConfigurationError(
                f"report(checkpoint_dir_name=...) {name!r} holds '?', which in a URL begins its options: nobody could give the checkpoint's "
                "URL; leave it out"
            )
    in_place = mode is CheckpointUploadMode.NO_UPLOAD
    if upload is not None and in_place:
        raise ConfigurationError(
            "report(checkpoint_upload_fn=..., checkpoint_upload_mode=NO_UPLOAD): the function stores the checkpoint, and NO_UPLOAD says "
            "that it is stored already; leave one of them out"
        )
    if upload is not None:
        checkpoint = _upload_by_user(state, checkpoint, name, upload)
        in_place = True
    if in_place:
        name = _name_in_run(state, checkpoint, name)
        # Other ranks may still be writing there: the driver looks at it once all have come.
        if state.run.local_path() is not None:
            check_directory(checkpoint.path)
        shard = StagedShard(rank=state.job.rank, root=layout.encode_path(checkpoint.path), files=())
    else:
        ours = is_staging(state, checkpoint.path)
        remove = (ours or mode is CheckpointUploadMode.ASYNC) if delete_local is None else delete_local
        if remove and not ours and _is_stored(checkpoint.path):
            if delete_local:
                raise CheckpointSourceError(
                    f"report(delete_local_checkpoint_after_upload=True): {checkpoint.path} is a stored checkpoint, or a part of one, and "
                    "cannot be given away; leave the argument out"
                )
            remove = False
        # After an asynchronous report a directory of the user's may be written to again at once: a link would bring
        # that into the checkpoint.
        adopt = remove and (ours or mode is CheckpointUploadMode.SYNC)
        shard = _stage_local(checkpoint, state.job.rank, adopt=adopt, remove=remove)
        if ours:
            remember_size(state, shard)
    return msgspec.structs.replace(call, shard=shard, name=name, in_place=in_place)


def _is_stored(path: str) -> bool:
    """Whether a directory is a stored checkpoint, or in one: of this run or another, or a copy that other processes share."""
    place = os.path.abspath(path)
    while not os.path.lexists(f"{place}/{layout.MANIFEST}"):
        parent = os.path.dirname(place)
        if parent == place:
            return False
        place = parent
    return True


def _stage_local(checkpoint: Checkpoint, rank: int, *, adopt: bool, remove: bool) -> StagedShard:
    if "://" in checkpoint.path and not checkpoint.path.startswith("file://"):
        raise CheckpointSourceError(
            f"report(checkpoint=...): {checkpoint.path} is no local directory; save to a local one, or register what lies "
            "in the run's storage already with checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD"
        )
    return stage(checkpoint.path, rank, adopt=adopt, remove=remove)


def _upload_by_user(state: WorkerState, checkpoint: Checkpoint, name: str | None, upload: UploadFunction) -> Checkpoint:
    check_takes(upload, 2, "report(checkpoint_upload_fn=...)", "checkpoint, name")
    # What a dead attempt uploaded under a name of ours must not mix with what this one does.
    chosen = name or layout.uploaded_name(state.next_report, state.job.attempt)
    stored = upload(checkpoint, chosen)
    if not isinstance(stored, Checkpoint):
        raise CheckpointSourceError(
            f"checkpoint_upload_fn returned {type(stored).__name__}; it must return the stored Checkpoint"
        )
    return stored


def _name_in_run(state: WorkerState, checkpoint: Checkpoint, name: str | None) -> str:
    """The directory name of a checkpoint that must lie directly in the run's directory already."""
    run, place = state.job.run_url, checkpoint.path
    if state.run.local_path() is not None:
        run, place = os.path.realpath(run), os.path.realpath(place)
    parent, _, found = place.rpartition("/")
    if parent != run.rstrip("/") or (name is not None and name != found):
        expected = f"{state.job.run_url}/{name or '<name>'}"
        raise CheckpointSourceError(
            f"the checkpoint {checkpoint.path} was to be registered without copying, but does not lie at {expected}; write "
            "it to get_context().get_storage().build_checkpoint_path_from_name(name), or let report copy it (SYNC)"
        )
    return layout.check_name(found, "the directory name of a checkpoint registered in place")


def get_all_reported_checkpoints(
    consistency_mode: CheckpointConsistencyMode = CheckpointConsistencyMode.VALIDATED,
    timeout_s: float | None = None,
) -> list[ReportedCheckpoint]:
    """Every checkpoint of the run that is committed and still kept, oldest first.

    Args:
        consistency_mode: What to wait for. `COMMITTED`: that every report which this worker has made is committed, or has
            failed. `VALIDATED`: and that the validations which those reports asked for have an outcome.
        timeout_s: Seconds to wait at most; None waits as long as it takes.

    Raises:
        OutsideWorkerError: Called outside a training function.
        WaitTimeoutError: Checkpoints are still on their way.
    """
    state = current("get_all_reported_checkpoints()")
    check_member("get_all_reported_checkpoints(consistency_mode=...)", consistency_mode, CheckpointConsistencyMode)
    state.ignores_checkpoint = False
    validated = consistency_mode is CheckpointConsistencyMode.VALIDATED
    answer = expect(
        state.channel.ask(protocol.CheckpointsCall(state.next_report, timeout_s, validated)), protocol.ReportedList
    )
    return [
        ReportedCheckpoint(
            checkpoint=state.committed(entry.name),
            metrics=decode_metrics(msgspec.Raw(entry.metrics)),
            status=status_of(entry.validation),
        )
        for entry in answer.entries
    ]
