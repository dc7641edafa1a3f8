"""When the callback saves a checkpoint, and in which of Lightning's hooks."""

from __future__ import annotations

from typing import Any


def place_of(trainer: Any) -> int:
    """Where training is: the number of the latest batch, across epochs.

    It tells one state of training from the next, which the number of the step does not: with manual optimization that may stand still.
    """
    place: int = trainer.fit_loop.total_batch_idx
    return place


class Schedule:
    """Says when a checkpoint is due. Asked once in each hook in which one can be saved.

    Args:
        every_n_epochs: So many epochs lie between two; None counts no epochs.
        every_n_steps: So many steps lie between two; None counts no steps.
    """

    def __init__(self, every_n_epochs: int | None, every_n_steps: int | None) -> None:
        self._every_n_epochs = every_n_epochs
        self._every_n_steps = every_n_steps
        self._seen_step = 0
        self._is_owed = False
        self._saved_at: int | None = None

    def begin(self, trainer: Any) -> None:
        """Training begins, or goes on."""
        self._seen_step = trainer.global_step
        self._is_owed = False
        self._saved_at = None

    def saved(self, trainer: Any) -> None:
        """There is a checkpoint of this place."""
        self._is_owed = False
        self._saved_at = place_of(trainer)

    def after_batch(self, trainer: Any) -> bool:
        """Whether one is due before Lightning does anything else.

        Where a validation follows it is due after that: it has the metrics then, and a run that goes on from it has not skipped the
        validation. Where validations go by the clock it is due here: no rank knows of another whether it validates. After the last batch of an epoch it is due at the epoch's end: a state saved here would not know that the epoch is over.
        """
        self._is_owed = self._steps_have_passed(trainer.global_step) or self._is_owed
        return self._is_owed and not trainer.is_last_batch and not _validation_follows(trainer)

    def after_validation(self, trainer: Any) -> bool:
        """Whether one is due that waited for the validation."""
        return self._is_owed and not trainer.is_last_batch

    def after_epoch(self, trainer: Any) -> bool:
        """Whether the epoch, or a step that was its last, has one."""
        by_epochs = self._every_n_epochs is not None and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        # An epoch that was stopped after a step that had its turn has been saved as it is.
        return (self._is_owed or by_epochs or _is_last(trainer)) and self.after_training(trainer)

    def after_training(self, trainer: Any) -> bool:
        """Whether something was trained that no checkpoint has."""
        return self._saved_at != place_of(trainer)

    def _steps_have_passed(self, step: int) -> bool:
        """Whether a multiple has been passed since the last look: with several optimizers a batch makes several steps."""
        if self._every_n_steps is None:
            return False
        before, self._seen_step = self._seen_step, step
        return step // self._every_n_steps > before // self._every_n_steps


def goes_by_clock(trainer: Any) -> bool:
    """Whether each rank decides by its own clock when it validates (`val_check_interval="00:10:00"`), and may be alone in that."""
    return getattr(trainer, "_val_check_time_interval", None) is not None


def _validation_follows(trainer: Any) -> bool:
    """Whether Lightning validates before the next batch, which it keeps to itself."""
    if goes_by_clock(trainer):
        return False
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def _is_last(trainer: Any) -> bool:
    """Whether this epoch is known to be the last."""
    ended = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return bool(ended or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step)
