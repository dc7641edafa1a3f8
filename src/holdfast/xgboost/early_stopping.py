"""Early stopping that a resume does not begin anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import xgboost.callback

from holdfast.boosting import is_reported
from holdfast.errors import ConfigurationError
from holdfast.worker.context import get_context, is_inside

_LOG = logging.getLogger("holdfast")
# An attribute of the model, beside XGBoost's own `best_iteration` and `best_score`, which a slice of a model loses.
ATTRIBUTE = "holdfast_early_stopping"

# By data set and metric what each round of a training has measured.
EvalsLog: TypeAlias = dict[str, dict[str, list[Any]]]


def measured_at(evals_log: EvalsLog, index: int = -1) -> dict[str, Any]:
    """What one round measured, by the names of XGBoost's own lines.

    Args:
        index: The round's, in this training; where there is none, the last one's is taken.
    """
    return {
        f"{data}-{name}": log[index if -1 <= index < len(log) else -1]
        for data, logs in evals_log.items()
        for name, log in logs.items()
    }


@dataclass(frozen=True)
class Best:
    """The best round of a model so far.

    Attributes:
        round: Its number, those before a resume counted.
        measured: What it measured, also what it was not judged by.
        num_taken: How many rounds that were no better have been taken away since.
    """

    round: int
    data: str
    metric: str
    score: Any
    measured: Mapping[str, Any]
    num_taken: int = 0

    @classmethod
    def of(cls, model: Any) -> Best | None:
        """What the model's last training has found, if that was `EarlyStopping`'s."""
        text = model.attr(ATTRIBUTE)
        found = cls(**json.loads(text)) if text is not None else None
        return found if found is not None and found.round < model.num_boosted_rounds() else None

    def keep_in(self, model: Any) -> None:
        """Stores it with the model."""
        model.set_attr(**{ATTRIBUTE: json.dumps(asdict(self))})


class EarlyStopping(xgboost.callback.EarlyStopping):
    """XGBoost's `EarlyStopping`, which goes on after a resume as if nothing had happened: the model brings its best round with it.

    It takes the same arguments. Put it before `RayTrainReportCallback`, so that a round is judged when the model is stored.

    Example:
        >>> callbacks = [EarlyStopping(rounds=10, save_best=True), RayTrainReportCallback(frequency=10)]
    """

    _best: Best | None = None
    # XGBoost's own, which it documents by their use: what was measured, what was best, and for how many rounds nothing has been better.
    stopping_history: EvalsLog
    best_scores: EvalsLog
    current_rounds: int
    starting_round: int

    def before_training(self, model: Any) -> Any:
        """Looks what the model brings.

        Raises:
            ConfigurationError: `RayTrainReportCallback` stands before it.
        """
        if is_reported(model):
            raise ConfigurationError(
                "EarlyStopping stands behind RayTrainReportCallback, so each round would be stored before it is judged; put EarlyStopping first"
            )
        model = super().before_training(model)
        self._best = self._watched(model)
        return model

    def before_iteration(self, model: Any, epoch: int, evals_log: EvalsLog) -> bool:
        """Ends a training that had ended before the resume."""
        best = self._best
        if best is None or self.stopping_history or self._num_since(best) < self.rounds:
            return False
        if not is_inside() or get_context().get_world_rank() == 0:
            _LOG.warning(
                "The model has stopped early already: of its %d rounds the best was that with index %d, by %s-%s, and EarlyStopping(rounds=%d) "
                "allows no further one. To train on all the same, use xgboost.callback.EarlyStopping, which begins anew",
                self.starting_round,
                best.round,
                best.data,
                best.metric,
                self.rounds,
            )
        return True

    def after_iteration(self, model: Any, epoch: int, evals_log: EvalsLog) -> bool:
        """Judges the round."""
        data = self.data or next(reversed(evals_log), "")
        metric = self.metric_name or next(reversed(evals_log.get(data, {})), "")
        best = self._best
        if best is not None and not self.stopping_history and (data, metric) == (best.data, best.metric):
            self.stopping_history = {data: {metric: [best.score]}}
            self.best_scores = {data: {metric: [best.score]}}
            self.current_rounds = self._num_since(best)
        stops: bool = super().after_iteration(model, epoch, evals_log)
        if self.current_rounds == 0:
            score = evals_log[data][metric][-1]
            Best(epoch + self.starting_round, data, metric, score, measured_at(evals_log)).keep_in(model)
        return stops

    def after_training(self, model: Any) -> Any:
        """Takes away the rounds after the best, where that is asked for, and has the model remember how many."""
        best, num_rounds = self._watched(model), model.num_boosted_rounds()
        model = super().after_training(model)
        if best is not None:
            replace(best, num_taken=best.num_taken + num_rounds - model.num_boosted_rounds()).keep_in(model)
        return model

    def _watched(self, model: Any) -> Best | None:
        """The model's best round, unless it is by what is not watched here."""
        best = Best.of(model)
        is_watched = best is not None and self.data in (None, best.data) and self.metric_name in (None, best.metric)
        return best if is_watched else None

    def _num_since(self, best: Best) -> int:
        """How many rounds were no better, of those that the model brings and those that were taken away."""
        return self.starting_round - 1 - best.round + best.num_taken
