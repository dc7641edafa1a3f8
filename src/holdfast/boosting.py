"""What the callbacks of XGBoost and of LightGBM share: reports of rounds, with the model's file as a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_int
from holdfast.errors import ConfigurationError
from holdfast.metrics import choose_metrics
from holdfast.persistence import layout
from holdfast.worker.context import current, get_checkpoint, get_context
from holdfast.worker.report import report
from holdfast.worker.staging_directory import staging_directory

_LOG = logging.getLogger("holdfast")
_NAME = "RayTrainReportCallback"
# The models that a callback reports, as long as somebody has them.
_reported: weakref.WeakSet[Any] = weakref.WeakSet()


def is_reported(model: Any) -> bool:
    """Whether a callback reports the training of this model, as far as it has begun."""
    return model in _reported


class RoundReporter:
    """The part of a callback that reports a round; what calls it is the framework's."""

    CHECKPOINT_NAME: ClassVar[str]

    def __init__(
        self,
        metrics: str | Sequence[str] | Mapping[str, str] | None = None,
        filename: str | None = None,
        frequency: int = 0,
        checkpoint_at_end: bool = True,
        results_postprocessing_fn: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        """Says what is reported, and how often the model is stored with it.

        Args:
            metrics: One name or a list of those to report, or a dict of new names to the framework's. None: all.
            filename: The model's file in a checkpoint; None: `CHECKPOINT_NAME`. XGBoost takes the format from its ending (`.ubj`, `.json`).
            frequency: A checkpoint each time that the model has so many rounds more, those before a resume counted. 0: none before the end.
            checkpoint_at_end: A checkpoint of the finished model. LightGBM does not tell of an end by an early stopping of its own: set
                `frequency` there, or give this callback `early_stopping`.
            results_postprocessing_fn: Takes the chosen metrics and returns those to report.

        Raises:
            ConfigurationError: `frequency` is no number of rounds, or `filename` no name of a file.
        """
        super().__init__()
        check_int(f"{_NAME}(frequency=...)", frequency, 0, "it counts rounds between checkpoints; 0 is none")
        self._filename = self.CHECKPOINT_NAME if filename is None else filename
        layout.check_name(self._filename, f"{_NAME}(filename=...)")
        self._metrics = metrics
        self._frequency = frequency
        self._checkpoint_at_end = checkpoint_at_end
        self._postprocess = results_postprocessing_fn

    def _begin(self, model: Any, num_rounds: int, resume_by: str) -> None:
        """Looks at a training that begins.

        Args:
            num_rounds: How many the model has.
            resume_by: The argument that takes a model to go on from.

        Raises:
            ConfigurationError: Another callback reports it.
        """
        if is_reported(model):
            raise ConfigurationError(
                f"{_NAME} is among the callbacks of one training twice, so each round would be reported twice; leave one of them out"
            )
        _reported.add(model)
        checkpoint = self._resumable()
        if num_rounds > 0 or checkpoint is None or get_context().get_world_rank() != 0:
            return
        if any(file.path == self._filename for file in checkpoint.files()):
            _LOG.warning(
                "Training begins with no round, though there is a checkpoint with a model, %s; to go on from it, pass "
                "%s=%s.get_model(get_checkpoint())",
                checkpoint.path,
                resume_by,
                _NAME,
            )

    def _resumable(self) -> Checkpoint | None:
        """The checkpoint that a training may go on from; None for a later one of the same function, which begins anew on purpose."""
        state, checkpoint = current(_NAME), get_checkpoint()
        return checkpoint if state.next_report == state.job.first_report else None

    def _is_due(self, num_rounds: int) -> bool:
        return self._frequency > 0 and num_rounds % self._frequency == 0

    def _report(self, measured: Mapping[str, Any], model: Any = None) -> None:
        """Reports what was measured.

        Args:
            model: What is stored with it, if anything is.

        Raises:
            MetricsError: A metric that was asked for is not there.
        """
        metrics: Mapping[str, Any] = choose_metrics(measured, self._metrics)
        if self._postprocess is not None:
            metrics = self._postprocess(dict(metrics))
        with self._saved(model) as checkpoint:
            report(metrics, checkpoint=checkpoint)

    @contextlib.contextmanager
    def _saved(self, model: Any) -> Iterator[Checkpoint | None]:
        if model is None or get_context().get_world_rank() != 0:
            yield None
            return
        with staging_directory() as directory:
            model.save_model(Path(directory, self._filename))
            self._add(directory, model)
            yield Checkpoint.from_directory(directory)

    def _add(self, directory: str, model: Any) -> None:
        """Puts what else is to be remembered beside the model."""
