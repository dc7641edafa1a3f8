"""The best model so far, on a machine that Transformers did not save it on."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from holdfast import collective
from holdfast.checkpoint import Checkpoint
from holdfast.config import CheckpointConsistencyMode
from holdfast.huggingface.transformers.presented import PREFIX
from holdfast.huggingface.transformers.weights import step_of
from holdfast.worker.context import get_checkpoint, get_context
from holdfast.worker.report import get_all_reported_checkpoints

_LOG = logging.getLogger("holdfast")


def bring_best(args: TrainingArguments, state: TrainerState, name: str) -> None:
    """Sees to it that a resumed trainer will find its best model at the end: where its directory is gone, it comes from the run.

    Transformers remembers the best model by a path in `output_dir`, which another machine does not have. It then forgets it, or fails to
    find it at the end, and leaves the last model in its place. But it looks for the directory of that step at each save.

    Args:
        name: The directory of a checkpoint that Transformers' own is in.

    Raises:
        StorageError: The run cannot be read.
        UnevenCallsError: A rank has returned.
    """
    step = getattr(state, "best_global_step", None)  # since 4.50
    if not args.load_best_model_at_end or not step:
        return
    # The same on every rank, on whatever machine: rank 0 looks.
    is_first = get_context().get_world_rank() == 0
    found = collective.broadcast_from_rank_zero(_step_of_best(args, state, step, name) if is_first else None)
    state.best_global_step = step = found if found is not None else step
    own = _directory(args, step)
    is_there = os.path.isdir(state.best_model_checkpoint or own) or os.path.isdir(own)
    if get_context().get_local_rank() == 0 and not is_there:
        _bring(own, step, name)
    collective.barrier()
    if not os.path.isdir(state.best_model_checkpoint or ""):
        state.best_model_checkpoint = own if os.path.isdir(own) else None


def _directory(args: TrainingArguments, step: int) -> str:
    return os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def _step_of_best(args: TrainingArguments, state: TrainerState, step: int, name: str) -> int:
    """The step of the best model that there is: of equals Transformers goes by the first, and the run may have kept another."""
    if (
        os.path.isdir(state.best_model_checkpoint or "")
        or os.path.isdir(_directory(args, step))
        or _of_step(step, name)
    ):
        return step
    metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
    for each in reversed(get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)):
        if state.best_metric is not None and each.metrics.get(metric) == state.best_metric:
            return int(each.metrics["step"])
    return step


def _bring(own: str, step: int, name: str) -> None:
    checkpoint = _of_step(step, name)
    if checkpoint is None:
        _LOG.warning(
            "The best model so far, of step %d, is neither at %s nor in the run: load_best_model_at_end will give the best of those that "
            "follow if one is better, and else the last. To keep the best in the run, too, give CheckpointConfig(num_to_keep=..., "
            "checkpoint_score_attribute=...) the metric that it is chosen by",
            step,
            own,
        )
        return
    Path(own).parent.mkdir(parents=True, exist_ok=True)
    # Whoever dies here leaves no part of a model where Transformers would take it for one.
    part = tempfile.mkdtemp(prefix=PREFIX, dir=os.path.dirname(own))
    with checkpoint.as_directory() as directory:
        shutil.copytree(f"{directory}/{name}", part, symlinks=True, dirs_exist_ok=True)
    shutil.copymode(os.path.dirname(own), part)
    os.rename(part, own)
    _LOG.warning(
        "The best model so far, of step %d, was not where Transformers had saved it; it is at %s now, from %s",
        step,
        own,
        checkpoint.path,
    )


def _of_step(step: int, name: str) -> Checkpoint | None:
    """The run's own checkpoint of a step, or the one that the run began with."""
    for each in reversed(get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)):
        if each.metrics.get("step") == step and step_of(each.checkpoint, f"{name}/") == step:
            return each.checkpoint
    latest = get_checkpoint()
    return latest if latest is not None and step_of(latest, f"{name}/") == step else None
