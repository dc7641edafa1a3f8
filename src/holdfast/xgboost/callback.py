"""The callback that reports what XGBoost measures, with checkpoints of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import xgboost
from xgboost.callback import TrainingCallback

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_int
from holdfast.metrics import choose_metrics
from holdfast.persistence import layout
from holdfast.worker.context import get_context
from holdfast.worker.report import report
from holdfast.worker.staging_directory import staging_directory


class RayTrainReportCallback(TrainingCallback):
    """Reports after every round of `xgboost.train`, on every rank, and stores rank 0's model, which all have alike.

    Metrics are named as in XGBoost's own lines: `eval-logloss` for the data set `eval` of `evals`.

    Example:
        >>> xgboost.train(params, data, evals=[(data, "train")], callbacks=[RayTrainReportCallback(frequency=10)])
    """

    CHECKPOINT_NAME: ClassVar[str] = "model.ubj"

    def __init__(
        self,
        metrics: str | Sequence[str] | Mapping[str, str] | None = None,
        filename: str = CHECKPOINT_NAME,
        frequency: int = 0,
        checkpoint_at_end: bool = True,
        results_postprocessing_fn: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        """Says what is reported, and how often the model is stored with it.

        Args:
            metrics: One name or a list of those to report, or a dict of new names to XGBoost's. None: all.
            filename: The model's file in a checkpoint; its ending (`.ubj`, `.json`) is the format.
            frequency: A checkpoint each time that the model has so many rounds more, those before a resume counted. 0: none before the end.
            checkpoint_at_end: A checkpoint of the finished model, unless its last round has brought one.
            results_postprocessing_fn: Takes the chosen metrics and returns those to report.

        Raises:
            ConfigurationError: `frequency` is no number of rounds, or `filename` no name of a file.
        """
        super().__init__()
        check_int(
            "RayTrainReportCallback(frequency=...)", frequency, 0, "it counts rounds between checkpoints; 0 is none"
        )
        layout.check_name(filename, "RayTrainReportCallback(filename=...)")
        self._metrics = metrics
        self._filename = filename
        self._frequency = frequency
        self._checkpoint_at_end = checkpoint_at_end
        self._postprocess = results_postprocessing_fn
        self._last_metrics: Mapping[str, Any] | None = None
        self._stored_rounds: int | None = None

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
        """Forgets the training before, if there was one."""
        self._last_metrics, self._stored_rounds = None, None
        return model

    def after_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Mapping[str, list[Any]]]) -> bool:
        """Reports the round.

        Raises:
            MetricsError: A metric that was asked for is not there.
        """
        measured = {f"{data}-{name}": log[-1] for data, logs in evals_log.items() for name, log in logs.items()}
        metrics: Mapping[str, Any] = choose_metrics(measured, self._metrics)
        if self._postprocess is not None:
            metrics = self._postprocess(dict(metrics))
        self._last_metrics = metrics
        if self._frequency > 0 and model.num_boosted_rounds() % self._frequency == 0:
            self._report(metrics, model)
        else:
            report(metrics)
        return False

    def after_training(self, model: Any) -> Any:
        """Reports the finished model, unless the last checkpoint has as many rounds.

        It may have more, or fewer: a round in which `EarlyStopping` stands before this callback and ends the training is not reported, and
        with `save_best` it takes rounds away.
        """
        is_new = self._last_metrics is not None and model.num_boosted_rounds() != self._stored_rounds
        if self._checkpoint_at_end and is_new:
            self._report(self._last_metrics or {}, model)
        return model

    def _report(self, metrics: Mapping[str, Any], model: Any) -> None:
        with self._saved(model) as checkpoint:
            report(metrics, checkpoint=checkpoint)
        self._stored_rounds = model.num_boosted_rounds()

    @contextlib.contextmanager
    def _saved(self, model: Any) -> Iterator[Checkpoint | None]:
        if get_context().get_world_rank() != 0:
            yield None
            return
        with staging_directory() as directory:
            model.save_model(Path(directory, self._filename))
            yield Checkpoint.from_directory(directory)
