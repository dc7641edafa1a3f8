"""`ReportCallback`: reports the checkpoints that Transformers saves."""

from __future__ import annotations

import logging
import os
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from holdfast import collective
from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_member
from holdfast.config import CheckpointUploadMode, ValidationTaskConfig
from holdfast.errors import CheckpointSourceError, ConfigurationError
from holdfast.huggingface.transformers.best import bring_best
from holdfast.huggingface.transformers.metrics import metrics_of
from holdfast.huggingface.transformers.prepare import check_together
from holdfast.huggingface.transformers.presented import linked, moved, remove_litter
from holdfast.huggingface.transformers.saved import Place, Trace, share_of, traces
from holdfast.huggingface.transformers.weights import complete_best, complete_resumed
from holdfast.worker.context import current, get_checkpoint, get_context
from holdfast.worker.report import report

_LOG = logging.getLogger("holdfast")


class ReportCallback(TrainerCallback):
    """Reports each checkpoint that a `transformers.Trainer` saves, with the metrics of its step, and each evaluation that no save follows.

    It implements `on_train_begin`, `on_step_begin`, `on_evaluate`, `on_save` and `on_train_end` of `transformers.TrainerCallback`. What Transformers wrote lies in the reported checkpoint
    below `checkpoint/`; to resume, `trainer.train(resume_from_checkpoint=f"{directory}/checkpoint")`. `TrainingArguments` say when it saves.

    Example:
        >>> trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[ReportCallback()])
        >>> trainer.train()

    Attributes:
        CHECKPOINT_NAME: The sub-directory of a checkpoint in which Transformers' own lies.
    """

    CHECKPOINT_NAME = "checkpoint"

    def __init__(
        self,
        checkpoint_upload_mode: CheckpointUploadMode | None = None,
        delete_local_checkpoint_after_upload: bool = False,
        validation: bool | ValidationTaskConfig = False,
    ) -> None:
        """Takes how it reports.

        Args:
            checkpoint_upload_mode: `SYNC` (None, too) waits until the checkpoint is stored; `ASYNC` lets training go on meanwhile.
            delete_local_checkpoint_after_upload: The directory that Transformers wrote is given away: on the run's own file system nothing
                is copied. Not together with `load_best_model_at_end`, which reads it at the end.
            validation: As for `report`.

        Raises:
            ConfigurationError: An argument cannot work.
        """
        mode = CheckpointUploadMode.SYNC if checkpoint_upload_mode is None else checkpoint_upload_mode
        check_member("ReportCallback(checkpoint_upload_mode=...)", mode, CheckpointUploadMode)
        if mode is CheckpointUploadMode.NO_UPLOAD:
            raise ConfigurationError(
                "ReportCallback(checkpoint_upload_mode=NO_UPLOAD): Transformers writes to TrainingArguments.output_dir, from where the "
                "checkpoint has to be stored; pass SYNC or ASYNC"
            )
        self._mode = mode
        self._gives_away = delete_local_checkpoint_after_upload
        self._validation = validation
        # By directory what lay in it before training began.
        self._before: dict[str, dict[str, Trace]] = {}
        # Whether an evaluation has found something that no report has.
        self._owes_evaluation = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at what there is, so that later saves are told from it, and completes what was resumed: its weights, and the best model so far.

        Raises:
            OutsideWorkerError: Called outside a training function.
            ConfigurationError: The trainer would train alone, or needs directories that are to be given away.
        """
        check_together(args)
        if self._gives_away and args.load_best_model_at_end:
            raise ConfigurationError(
                "TrainingArguments(load_best_model_at_end=True) reads the best checkpoint's directory at the end of training, and "
                "ReportCallback(delete_local_checkpoint_after_upload=True) gives it away before; leave one of them out"
            )
        if get_context().get_local_rank() == 0:
            remove_litter(args.output_dir)
        if state.global_step > 0:
            bring_best(args, state, self.CHECKPOINT_NAME)
        # An attempt that was killed in the middle of a save leaves a part of a checkpoint, perhaps of more ranks than there are now.
        # Transformers will write into the same directory, and what it does not write again must not get into the checkpoint.
        self._before = {directory: traces(directory) for directory in _saved_in(args.output_dir)}
        self._owes_evaluation = False
        if get_context().get_world_rank() == 0:
            _warn_of_beginning(args, state)
        if state.global_step > 0:
            complete_resumed(kwargs.get("model"), args, state, self.CHECKPOINT_NAME)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sees to it that the best model, where it was asked for, is the best in all its weights, and reports a last evaluation."""
        self._report_evaluation(state)
        complete_best(kwargs.get("model"), args, state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes note of it: of several data sets it is one each, a save may follow, and one outside of training may be a single rank's."""
        self._owes_evaluation = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reports what an evaluation found that no save has reported.

        Raises:
            ReportError: As `report` does.
            StorageError: As `report` does.
        """
        self._report_evaluation(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reports what was saved.

        Raises:
            CheckpointSourceError: Transformers saved somewhere else.
            ReportError: As `report` does.
            StorageError: As `report` does.
        """
        self._owes_evaluation = False
        metrics = metrics_of(state)
        source = os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        paths = self._share(source)
        if not paths:
            report(metrics, checkpoint_upload_mode=self._mode, validation=self._validation)
            return
        present = moved if self._gives_away else linked
        with present(args.output_dir, source, paths, self.CHECKPOINT_NAME) as presented:
            report(
                metrics,
                Checkpoint.from_directory(presented.directory),
                checkpoint_upload_mode=self._mode,
                # What is not ours stays Transformers': it is copied, and only the links to it go, by us.
                delete_local_checkpoint_after_upload=presented.is_ours,
                validation=self._validation,
            )

    def _report_evaluation(self, state: TrainerState) -> None:
        if self._owes_evaluation:
            self._owes_evaluation = False
            report(metrics_of(state))

    def _share(self, source: str) -> list[str]:
        """The paths below `source` that this rank reports."""
        context = get_context()
        rank, size, on_node = context.get_world_rank(), context.get_world_size(), context.get_local_world_size()
        # Saving is no collective: each rank writes its random state, and the first is here before the last has done so.
        collective.barrier()
        before = self._before.get(source, {})
        files = {path: trace for path, trace in traces(source).items() if before.get(path) != trace}
        if rank == 0 and not files:
            raise CheckpointSourceError(
                f"Transformers has told of a save, but there is nothing new in {source!r}, where TrainingArguments.output_dir has it lie; "
                "report what your Trainer saves elsewhere in a callback of your own"
            )
        # Nobody takes a file away before all have looked.
        if size > on_node:
            seen_by_first = collective.broadcast_from_rank_zero(files if rank == 0 else None) or {}
        else:  # where all see the same
            collective.barrier()
            seen_by_first = {}
        place = Place(rank, first_rank=rank - context.get_local_rank(), num_ranks=on_node)
        return share_of(place, files, seen_by_first)


# The name that scripts use.
RayTrainReportCallback = ReportCallback


def _saved_in(output_dir: str) -> list[str]:
    """The directories of checkpoints that lie in Transformers' own one."""
    try:
        names = os.listdir(output_dir)
    except FileNotFoundError:
        return []
    return [os.path.join(output_dir, name) for name in names if name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")]


def _warn_of_beginning(args: TrainingArguments, state: TrainerState) -> None:
    checkpoint, worker = get_checkpoint(), current("ReportCallback")
    # A later training of the same function begins anew on purpose.
    is_first = worker.next_report == worker.job.first_report
    if checkpoint is not None and state.global_step == 0 and is_first:
        _LOG.warning(
            "Training begins at step 0, though there is a checkpoint, %s; to go on from it, call "
            "trainer.train(resume_from_checkpoint=f'{directory}/checkpoint') within "
            "`with get_checkpoint().as_directory() as directory`",
            checkpoint.path,
        )
    if args.save_strategy == "no":
        _LOG.warning(
            "TrainingArguments(save_strategy='no') saves nothing, so no checkpoint will be reported; pass 'epoch' or 'steps'"
        )
