"""The callback that reports."""

from __future__ import annotations

import os
from typing import Any

from holdfast.checks import check_int, check_member
from holdfast.config import CheckpointUploadMode, ValidationTaskConfig
from holdfast.errors import ConfigurationError
from holdfast.lightning.due import Schedule, goes_by_clock
from holdfast.lightning.metrics import CurrentMetrics
from holdfast.lightning.ordering import put_last
from holdfast.lightning.resuming import explain, resume_data, warn_if_refused
from holdfast.lightning.saving import saved
from holdfast.lightning.shares import SHARES, shares_of
from holdfast.lightning.trainer import check_spans_workers
from holdfast.torch.lightning import know_workers
from holdfast.worker.report import report


class RayTrainReportCallback:
    """Reports the logged metrics and a checkpoint at the end of every epoch; goes into `Trainer(callbacks=[...])`.

    The metrics are those of `trainer.callback_metrics` that were set where training is, `epoch` and `step`; the checkpoint is what
    `trainer.save_checkpoint` saves, under the name `CHECKPOINT_NAME`: a file, or with FSDP's sharded state and DeepSpeed a directory to
    which each rank adds its shards. `trainer.fit(..., ckpt_path=...)` takes it. Training that ends with a state that no checkpoint has
    reports once more. It is called after all other callbacks, so the checkpoint has their states as they are then.

    Args:
        checkpoint_upload_mode: As for `report`; with `ASYNC` training waits for the saving alone. `SYNC` by default.
        validation: As for `report`, with every checkpoint.
        every_n_epochs: So many epochs lie between two checkpoints; metrics are reported at the end of each. 1 by default, unless
            steps are given.
        every_n_train_steps: So many steps of the optimizer lie between two checkpoints, which are reported in the midst of
            epochs; after the validation, where one is due at that step.

    Raises:
        ConfigurationError: An argument cannot work; in training: the trainer does not span the workers, or torch loads the checkpoint
            to go on from only where it is told to trust it.
        OutsideWorkerError: Training begins outside a training function.
    """

    CHECKPOINT_NAME = "checkpoint.ckpt"

    # While it trains it may be `trainer.checkpoint_callback`, which is asked for this. A `ModelCheckpoint` that has saved nothing says so.
    best_model_path = ""

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
        self._schedule = Schedule(every_n_epochs or (None if every_n_train_steps else 1), every_n_train_steps)
        self._metrics = CurrentMetrics()
        self._loaded_shares: Any = None
        self._has_looked = False
        self._class = type(self)
        know_workers()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Looks at the trainer before it trains, and goes behind its other callbacks."""
        if stage == "fit":
            check_spans_workers(trainer)
            _check_alone(trainer)
            put_last(self, trainer)
            self._loaded_shares = None
            # Whoever has loaded one knows how.
            self._has_looked = trainer.ckpt_path is not None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Is again what it was."""
        self.__class__ = self._class

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Says what to do about a checkpoint that torch does not load."""
        self.__class__ = self._class
        explain(exception)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed training has to know."""
        checkpoint[SHARES] = shares_of(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Takes it."""
        self._loaded_shares = checkpoint.get(SHARES)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Finds the place in an epoch that was begun before."""
        resume_data(trainer, self._loaded_shares)
        self._schedule.begin(trainer)
        self._metrics = CurrentMetrics()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Sees what was logged with the batch before, whether it was reported or not."""
        self._metrics.look_back(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Reports after every so many steps."""
        if self._schedule.after_batch(trainer):
            self._report(trainer, trainer.current_epoch, with_checkpoint=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Reports what the validation has found, with a checkpoint if a step before it had its turn."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._metrics.look(trainer)
        if self._schedule.after_validation(trainer):
            self._report(trainer, trainer.current_epoch, with_checkpoint=True)
        elif not trainer.is_last_batch and not goes_by_clock(
            trainer
        ):  # the end of an epoch reports it, and so may one rank alone
            self._report(trainer, trainer.current_epoch, with_checkpoint=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Reports the epoch."""
        self._report(trainer, trainer.current_epoch, with_checkpoint=self._schedule.after_epoch(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Reports what an early end has left without a checkpoint."""
        if self._schedule.after_training(trainer):
            self._report(trainer, max(0, trainer.current_epoch - 1), with_checkpoint=True)

    def _report(self, trainer: Any, epoch: int, *, with_checkpoint: bool) -> None:
        metrics = {**self._metrics.look(trainer), "epoch": epoch, "step": trainer.global_step}
        if not with_checkpoint:
            report(metrics)
            return
        with saved(trainer, self.CHECKPOINT_NAME) as checkpoint:
            if checkpoint is not None and not self._has_looked:
                self._has_looked = True
                warn_if_refused(os.path.join(checkpoint.path, self.CHECKPOINT_NAME))
            report(metrics, checkpoint, checkpoint_upload_mode=self._mode, validation=self._validation)
        self._schedule.saved(trainer)


def _check_alone(trainer: Any) -> None:
    if sum(isinstance(each, RayTrainReportCallback) for each in trainer.callbacks) > 1:
        raise ConfigurationError(
            "Trainer(callbacks=[...]) has the RayTrainReportCallback more than once, so all would be reported as often; leave one"
        )
