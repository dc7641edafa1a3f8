"""The callback that reports what XGBoost measures, with checkpoints of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import xgboost
from xgboost import collective
from xgboost.callback import TrainingCallback

from holdfast.boosting import RoundReporter
from holdfast.checkpoint import Checkpoint
from holdfast.errors import ConfigurationError
from holdfast.worker.context import current, get_context
from holdfast.xgboost.early_stopping import ATTRIBUTE, Best, EvalsLog, measured_at


class RayTrainReportCallback(RoundReporter, TrainingCallback):
    """Reports after every round of `xgboost.train`, on every rank, and stores rank 0's model, which all have alike.

    Metrics are named as in XGBoost's own lines: `eval-logloss` for the data set `eval` of `evals`.

    Example:
        >>> xgboost.train(params, data, evals=[(data, "train")], callbacks=[RayTrainReportCallback(frequency=10)])
    """

    CHECKPOINT_NAME: ClassVar[str] = "model.ubj"

    # Of the training that runs: how many rounds the model had, what told it from others when it was last stored, and what was measured since.
    _begun_with: int
    _stored: tuple[int, str | None] | None
    _evals_log: EvalsLog

    @classmethod
    def get_model(cls, checkpoint: Checkpoint, filename: str = CHECKPOINT_NAME) -> xgboost.Booster:
        """The model in a checkpoint that this callback reported.

        Args:
            filename: As it was given to the callback.

        Raises:
            StoreNotFoundError: There is no such checkpoint.
            DamagedCheckpointError: Its bytes are not those that were reported.
        """
        with checkpoint.as_directory() as directory:
            booster = xgboost.Booster()
            booster.load_model(Path(directory, filename))
        return booster

    def before_training(self, model: Any) -> Any:
        """Looks whether this will be one training of all workers, which goes on from where the run is.

        Raises:
            OutsideWorkerError: Called outside a training function.
            ConfigurationError: Each worker would train by itself, or another such callback reports it.
        """
        _check_together()
        self._begun_with = model.num_boosted_rounds()
        # A model of elsewhere this run has not stored.
        self._stored = _state_of(model) if current("RayTrainReportCallback").job.checkpoint is not None else None
        self._evals_log = {}
        self._begin(model, self._begun_with, "xgb_model")
        return model

    def after_iteration(self, model: Any, epoch: int, evals_log: EvalsLog) -> bool:
        """Reports the round.

        Raises:
            MetricsError: A metric that was asked for is not there.
        """
        self._evals_log = evals_log
        num_rounds = model.num_boosted_rounds()
        is_due = self._is_due(num_rounds)
        self._report(measured_at(evals_log), model if is_due else None)
        if is_due:
            self._stored = _state_of(model)
        return False

    def after_training(self, model: Any) -> Any:
        """Reports the finished model with the metrics of its own last round, unless the last checkpoint has as many rounds.

        It may have more, or fewer: a round in which `EarlyStopping` stands before this callback and ends the training is not reported, and
        with `save_best` it takes rounds away.
        """
        num_rounds = model.num_boosted_rounds()
        if self._checkpoint_at_end and num_rounds > 0 and _state_of(model) != self._stored:
            self._report(self._measured_of(model, num_rounds), model)
        return model

    def _measured_of(self, model: Any, num_rounds: int) -> Mapping[str, Any]:
        best = Best.of(model)
        if num_rounds <= self._begun_with and best is not None and best.round == num_rounds - 1:
            return best.measured  # of a round before the resume
        return measured_at(self._evals_log, num_rounds - self._begun_with - 1)


def _state_of(model: Any) -> tuple[int, str | None]:
    """How many rounds it has, and what `EarlyStopping` has it remember."""
    return model.num_boosted_rounds(), model.attr(ATTRIBUTE)


def _check_together() -> None:
    """Where each worker trains a model by itself, of which all but rank 0's would be lost without a word."""
    there, here = get_context().get_world_size(), collective.get_world_size()
    if here != there:
        raise ConfigurationError(
            f"there are {there} workers, and XGBoost knows of {here}: each would train a model by itself, on its own rows, and only rank "
            "0's be stored; run the function with holdfast.xgboost.XGBoostTrainer, which makes XGBoost's communicator, or with num_workers=1"
        )
