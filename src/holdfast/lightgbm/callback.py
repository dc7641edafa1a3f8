"""The callback that reports what LightGBM measures, with checkpoints of the model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_int
from holdfast.metrics import choose_metrics
from holdfast.persistence import layout
from holdfast.worker.context import get_context
from holdfast.worker.report import report
from holdfast.worker.staging_directory import staging_directory

if TYPE_CHECKING:
    import lightgbm

_LOG = logging.getLogger("holdfast.lightgbm")
_LEARNER_NAMES = ("tree_learner", "tree", "tree_type", "tree_learner_type")


class RayTrainReportCallback:
    """Reports after every round of `lightgbm.train`, on every rank, and stores rank 0's model, which all have alike.

    Metrics are named by their data set and LightGBM's name: `valid_0-l2`.

    Example:
        >>> lightgbm.train(params, data, valid_sets=[valid], callbacks=[RayTrainReportCallback(frequency=10)])
    """

    CHECKPOINT_NAME: ClassVar[str] = "model.txt"

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
            metrics: One name or a list of those to report, or a dict of new names to LightGBM's. None: all.
            filename: The model's file in a checkpoint.
            frequency: A checkpoint each time that the model has so many rounds more, those before a resume counted. 0: none before the end.
            checkpoint_at_end: A checkpoint with the last round. LightGBM does not tell of an end by early stopping: set `frequency` there.
            results_postprocessing_fn: Takes the chosen metrics and returns those to report.

        Raises:
            ConfigurationError: `frequency` is no number of rounds, or `filename` no name of a file.
        """
        check_int(
            "RayTrainReportCallback(frequency=...)", frequency, 0, "it counts rounds between checkpoints; 0 is none"
        )
        layout.check_name(filename, "RayTrainReportCallback(filename=...)")
        self._metrics = metrics
        self._filename = filename
        self._frequency = frequency
        self._checkpoint_at_end = checkpoint_at_end
        self._postprocess = results_postprocessing_fn

    @classmethod
    def get_model(cls, checkpoint: Checkpoint, filename: str = CHECKPOINT_NAME) -> lightgbm.Booster:
        """The model in a checkpoint that this callback reported.

        Args:
            filename: As it was given to the callback.

        Raises:
            StoreNotFoundError: There is no such checkpoint.
            DamagedCheckpointError: Its bytes are not those that were reported.
            ImportError: LightGBM is not installed.
        """
        from holdfast.lightgbm.config import check_installed

        check_installed()
        import lightgbm

        with checkpoint.as_directory() as directory:
            return lightgbm.Booster(model_file=Path(directory, filename))

    def __call__(self, env: lightgbm.callback.CallbackEnv) -> None:
        """Reports the round.

        Raises:
            MetricsError: A metric that was asked for is not there.
        """
        if env.iteration == env.begin_iteration:
            _say_alone(env.params)
        metrics: Mapping[str, Any] = choose_metrics(_measured(env.evaluation_result_list or []), self._metrics)
        if self._postprocess is not None:
            metrics = self._postprocess(dict(metrics))
        num_rounds = env.iteration + 1
        is_due = self._frequency > 0 and num_rounds % self._frequency == 0
        if is_due or (self._checkpoint_at_end and num_rounds == env.end_iteration):
            with self._saved(env.model) as checkpoint:
                report(metrics, checkpoint=checkpoint)
        else:
            report(metrics)

    @contextlib.contextmanager
    def _saved(self, model: Any) -> Iterator[Checkpoint | None]:
        if get_context().get_world_rank() != 0:
            yield None
            return
        with staging_directory() as directory:
            model.save_model(Path(directory, self._filename))
            yield Checkpoint.from_directory(directory)


def _measured(results: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """By name; those of `lightgbm.cv` have a mean and a standard deviation."""
    measured = {}
    for data, name, value, _, *deviation in results:
        measured[f"{data}-{name}-mean" if deviation else f"{data}-{name}"] = value
        if deviation:
            measured[f"{data}-{name}-stdv"] = deviation[0]
    return measured


def _say_alone(params: Mapping[str, Any]) -> None:
    """Where each rank trains a model by itself, of which all but rank 0's would be lost without a word."""
    learner = next((params[name] for name in _LEARNER_NAMES if params.get(name)), "serial")
    if "machines" in params and learner == "serial" and get_context().get_world_rank() == 0:
        _LOG.warning(
            "LightGBM is told of other machines, but trains a model for each by itself (tree_learner is 'serial'); rank 0's is stored. "
            "Give tree_learner='data' and pre_partition=True beside get_network_params()"
        )
