"""The callback that reports."""

from __future__ import annotations

from typing import Any

from holdfast.checks import check_int, check_member
from holdfast.config import CheckpointUploadMode, ValidationTaskConfig
from holdfast.lightning.resuming import resume_data
from holdfast.lightning.saving import saved
from holdfast.lightning.trainer import check_spans_workers, know_workers
from holdfast.worker.report import report


class ReportHooks:
    """Reports the logged metrics and a checkpoint at the end of every epoch; goes into `Trainer(callbacks=[...])`.

    The metrics are `trainer.callback_metrics`, `epoch` and `step`; the checkpoint is what `trainer.save_checkpoint` saves,
    under the name `CHECKPOINT_NAME`: a file, or with FSDP's sharded state and DeepSpeed a directory to which each rank adds
    its shards. `trainer.fit(..., ckpt_path=...)` takes it. Training that ends with a state that no checkpoint has reports once
    more.

    Args:
        checkpoint_upload_mode: As for `report`; with `ASYNC` training waits for the saving alone. `SYNC` by default.
        validation: As for `report`, with every checkpoint.
        every_n_epochs: So many epochs lie between two checkpoints; metrics are reported at the end of each. 1 by default, unless
            steps are given.
        every_n_train_steps: So many steps of the optimizer lie between two checkpoints, which are reported in the midst of
            epochs, each with the metrics as they are then.

    Raises:
        ConfigurationError: An argument cannot work; in training: the trainer does not span the workers.
        OutsideWorkerError: Training begins outside a training function.
    """

    CHECKPOINT_NAME = "checkpoint.ckpt"

    def __init__(
        self,
        checkpoint_upload_mode: CheckpointUploadMode | None = None,
        validation: bool | ValidationTaskConfig = False,
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
    ) -> None:
        super().__init__()
        if checkpoint_upload_mode is not None:
            check_member(
                "RayTrainReportCallback(checkpoint_upload_mode=...)", checkpoint_upload_mode, CheckpointUploadMode
            )
        for option, value in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps)):
            if value is not None:
                check_int(f"RayTrainReportCallback({option}=...)", value, 1, "leave it out for the default")
        self._mode = checkpoint_upload_mode or CheckpointUploadMode.SYNC
        self._validation = validation
        self._every_n_epochs = every_n_epochs or (None if every_n_train_steps else 1)
        self._every_n_steps = every_n_train_steps
        self._seen_step = 0
        self._saved_step: int | None = None
        know_workers()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Looks at the trainer before it trains."""
        if stage == "fit":
            check_spans_workers(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Finds the place in an epoch that was begun before."""
        resume_data(trainer)
        self._seen_step = trainer.global_step
        self._saved_step = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Reports after every so many steps."""
        # The last batch's turn comes at the end of its epoch: a state saved here would not know that the epoch is over.
        if self._every_n_steps is not None and not trainer.is_last_batch and self._steps_are_due(trainer.global_step):
            self._report(trainer, trainer.current_epoch, with_checkpoint=True)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Reports the epoch."""
        number = trainer.current_epoch + 1
        due = self._every_n_epochs is not None and number % self._every_n_epochs == 0
        due = self._steps_are_due(trainer.global_step) or due or _is_last(trainer)
        # One that was stopped after a step that had its turn has been saved as it is.
        due = due and self._saved_step != trainer.global_step
        self._report(trainer, trainer.current_epoch, with_checkpoint=due)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Reports what an early end has left without a checkpoint."""
        if self._saved_step != trainer.global_step:
            self._report(trainer, max(0, trainer.current_epoch - 1), with_checkpoint=True)

    def _steps_are_due(self, step: int) -> bool:
        """Whether a multiple has been passed since the last look: with several optimizers a batch makes several steps."""
        if self._every_n_steps is None:
            return False
        before, self._seen_step = self._seen_step, step
        return step // self._every_n_steps > before // self._every_n_steps

    def _report(self, trainer: Any, epoch: int, *, with_checkpoint: bool) -> None:
        metrics = {**trainer.callback_metrics, "epoch": epoch, "step": trainer.global_step}
        if not with_checkpoint:
            report(metrics)
            return
        with saved(trainer, self.CHECKPOINT_NAME) as checkpoint:
            report(metrics, checkpoint, checkpoint_upload_mode=self._mode, validation=self._validation)
        self._saved_step = trainer.global_step


def _is_last(trainer: Any) -> bool:
    """Whether this epoch is known to be the last."""
    ended = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return bool(ended or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step)
