"""The callback that reports what Keras measures, with checkpoints of the model."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_choice
from holdfast.errors import ConfigurationError
from holdfast.metrics import choose_metrics
from holdfast.tensorflow import resume_point
from holdfast.tensorflow.config import uses_legacy_keras
from holdfast.worker.context import get_context
from holdfast.worker.report import report
from holdfast.worker.staging_directory import staging_directory

_LOG = logging.getLogger("holdfast.tensorflow")
_EVENTS = (
    "epoch_begin",
    "epoch_end",
    "train_batch_begin",
    "train_batch_end",
    "test_batch_begin",
    "test_batch_end",
    "predict_batch_begin",
    "predict_batch_end",
    "train_begin",
    "train_end",
    "test_begin",
    "test_end",
    "predict_begin",
    "predict_end",
)
# Of the `fit` that is beginning: what Keras gives to all of its callbacks, and the events that some of them report.
_beginning: tuple[Any, frozenset[str]] = (None, frozenset())


class ReportCheckpointCallback:
    """Reports on every rank what Keras measures at the events named, and stores rank 0's whole model: weights, optimizer and all.

    Works with Keras 3 on any backend and, where that is in use, with tf_keras; an instance is a `Callback` of the one that is. Neither is
    imported before an instance is made.

    Example:
        >>> checkpoint = holdfast.get_checkpoint()
        >>> model = ReportCheckpointCallback.get_model(checkpoint) if checkpoint else build_model()
        >>> first = ReportCheckpointCallback.get_initial_epoch(checkpoint)
        >>> model.fit(x, y, epochs=10, initial_epoch=first, callbacks=[ReportCheckpointCallback()])
    """

    CHECKPOINT_NAME: ClassVar[str] = "model.keras"

    # Of the base.
    model: Any
    params: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> ReportCheckpointCallback:  # noqa: D102 - chooses the base alone
        base = _keras().callbacks.Callback
        if issubclass(cls, base):
            return super().__new__(cls)
        return object.__new__(type(cls.__name__, (cls, base), {"__module__": cls.__module__, "__doc__": cls.__doc__}))

    def __init__(
        self,
        checkpoint_on: str | Sequence[str] = "epoch_end",
        report_metrics_on: str | Sequence[str] = "epoch_end",
        metrics: str | Sequence[str] | Mapping[str, str] | None = None,
    ) -> None:
        """Says what is reported, and when.

        One `fit` may have several, if no event is reported by two of them.

        Args:
            checkpoint_on: The events that bring a checkpoint, by Keras's names without `on_`: `epoch_end`, `train_batch_end`, ….
            report_metrics_on: The events that bring a report. With a checkpoint comes one always.
            metrics: One name or a list of those to report, or a dict of new names to Keras's. None: all. A `val_…` is left out after an
                epoch without a validation, which `fit(validation_freq=…)` has.

        Raises:
            ConfigurationError: There is no such event.
            ImportError: Keras is not installed.
        """
        super().__init__()
        self._checkpoint_on = _events("checkpoint_on", checkpoint_on)
        self._report_on = _events("report_metrics_on", report_metrics_on) | self._checkpoint_on
        self._metrics = metrics
        self._next_epoch = 0
        self._has_trained = False
        self._was_validated = False
        self._has_warned = False
        # Only what is needed: Keras asks whether a callback wants to hear of every batch, and is slower if one does.
        for event in {"train_begin", "train_end", "epoch_begin", "test_end", "epoch_end", *self._report_on}:
            name = f"on_{event}"
            setattr(self, name, functools.partial(self._on, event, getattr(self, name)))

    @classmethod
    def get_model(cls, checkpoint: Checkpoint, **kwargs: Any) -> Any:
        """The model in a checkpoint that this callback reported, compiled, with its optimizer's state.

        Under a strategy call it in the strategy's scope. The seed generators of its layers (of Dropout, say) go on where they were, too,
        which `keras.models.load_model` alone would begin anew.

        Args:
            kwargs: For `keras.models.load_model`, `custom_objects` say.

        Raises:
            StoreNotFoundError: There is no such checkpoint, or this callback did not report it.
            DamagedCheckpointError: Its bytes are not those that were reported.
            ImportError: Keras is not installed.
        """
        with checkpoint.as_directory() as directory:
            path = Path(directory, cls.CHECKPOINT_NAME)
            model = _keras(_written_by(path)).models.load_model(str(path), **kwargs)
        resume_point.set_seeds(model, resume_point.read(checkpoint).seeds)
        return model

    @classmethod
    def get_initial_epoch(cls, checkpoint: Checkpoint | None) -> int:
        """The `initial_epoch` of a `fit` that goes on from a checkpoint: that which was not finished when it was stored.

        Args:
            checkpoint: One that this callback reported; None gives 0.

        Raises:
            StoreNotFoundError: There is no such checkpoint, or this callback did not report it.
            FormatError: It does not say it.
        """
        if checkpoint is None:
            return 0
        return resume_point.read(checkpoint).epoch

    def _on(self, event: str, inherited: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        inherited(*args, **kwargs)
        if event.startswith("epoch"):
            epoch = kwargs["epoch"] if "epoch" in kwargs else args[0]
            self._next_epoch = int(epoch) + (event == "epoch_end")
        if event == "train_begin":
            self._has_trained = False
            _check_reports_once(self.params, self._report_on)
            _warn_of_lone_training(self.model)
        elif event == "epoch_begin":
            self._has_trained, self._was_validated = True, False
            _check_reports_once(None, frozenset())  # it has begun
        elif event == "train_end":
            _check_reports_once(None, frozenset())  # without an epoch
        elif event == "test_end":
            self._was_validated = True
        if event not in self._report_on or (event == "train_end" and not self._has_trained):
            return  # after its last epoch a run that is resumed has nothing to add
        logs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Mapping)), {})
        metrics = choose_metrics(logs, self._wanted(logs))
        if event not in self._checkpoint_on:
            report(metrics)
            return
        with self._saved() as checkpoint:
            report(metrics, checkpoint=checkpoint)

    def _wanted(self, logs: Mapping[str, Any]) -> Mapping[str, str] | None:
        """The metrics to report, without those of a validation that there was not."""
        if self._metrics is None:
            return None
        names = [self._metrics] if isinstance(self._metrics, str) else self._metrics
        wanted = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        if self._was_validated:
            return wanted
        there = {ours: name for ours, name in wanted.items() if name in logs or not name.startswith("val_")}
        if len(there) < len(wanted) and not self._has_warned and get_context().get_world_rank() == 0:
            self._has_warned = True
            _LOG.warning(
                "this epoch has no validation, so %s cannot be reported; likewise, and without a word, after further ones",
                ", ".join(repr(name) for ours, name in wanted.items() if ours not in there),
            )
        return there

    @contextlib.contextmanager
    def _saved(self) -> Iterator[Checkpoint | None]:
        is_first = get_context().get_world_rank() == 0
        if not is_first and not _saves_together(self.model):
            yield None
            return
        # Also where nothing is reported: it is removed after a crash, too.
        with staging_directory() as directory:
            self.model.save(str(Path(directory, self.CHECKPOINT_NAME)))
            if is_first:
                resume_point.ResumePoint(self._next_epoch, resume_point.seeds_of(self.model)).write(directory)
                yield Checkpoint.from_directory(directory)
        if not is_first:
            yield None


def _check_reports_once(params: Any, events: frozenset[str]) -> None:
    """Refuses the second callback of one `fit`, of which none knows the others.

    Args:
        params: Keras's of a `fit`, the same object for all of its callbacks; None where nothing is beginning.
        events: What this callback reports.

    Raises:
        ConfigurationError: Another of this `fit` reports one of them.
    """
    global _beginning
    others = _beginning[1] if params is not None and params is _beginning[0] else frozenset()
    if common := sorted(others & events):
        raise ConfigurationError(
            f"two of the callbacks of one fit are ReportCheckpointCallbacks that report on {common[0]!r}, so it would be reported twice; "
            "leave one of them out, or give them different events"
        )
    _beginning = params, others | events


def _warn_of_lone_training(model: Any) -> None:
    """Says so where TensorFlow trains a model of its own on each worker, of which rank 0's alone would be kept."""
    context = get_context()
    strategy = getattr(model, "distribute_strategy", None)
    trains_alone = strategy is not None and strategy.num_replicas_in_sync < context.get_world_size()
    if trains_alone and context.get_world_rank() == 0:
        _LOG.warning(
            "each of the %d workers trains a model of its own, and rank 0's is kept: make the model in the scope of "
            "tf.distribute.MultiWorkerMirroredStrategy(), or take ScalingConfig(num_workers=1)",
            context.get_world_size(),
        )


def _events(argument: str, names: str | Sequence[str]) -> frozenset[str]:
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        check_choice(f"ReportCheckpointCallback.{argument}", name, _EVENTS)
    return frozenset(chosen)


def _saves_together(model: Any) -> bool:
    """Whether to save is a collective: a strategy of several workers has variables that are the mean of all ranks' (of BatchNormalization, say).

    https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras#model_saving_and_loading
    """
    strategy = getattr(model, "distribute_strategy", None)
    return strategy is not None and strategy.num_replicas_in_sync > 1


def _written_by(path: Path) -> str:
    """Which Keras saved a model, for neither reads what the other has written.

    https://keras.io/guides/serialization_and_saving/: a zip file, whose `metadata.json` says it.
    """
    with zipfile.ZipFile(path) as archive:
        version = str(json.loads(archive.read("metadata.json"))["keras_version"])
    return "tf_keras" if version.startswith("2.") else "keras"


def _keras(name: str | None = None) -> Any:
    """A Keras: by default tf_keras where the program has loaded it or TensorFlow is told to, else Keras 3, always on other backends.

    Raises:
        ImportError: It is not installed.
    """
    if name is None:
        loaded = sys.modules.get("keras")
        on_tensorflow = loaded is None or loaded.backend.backend() == "tensorflow"
        # There, its `Callback` does for models of Keras 3, too, and not the other way round.
        name = "tf_keras" if on_tensorflow and ("tf_keras" in sys.modules or uses_legacy_keras()) else "keras"
    if importlib.util.find_spec(name) is None:
        wanted = "tf_keras" if name == "tf_keras" else "holdfast[tensorflow], or keras and its backend"
        raise ImportError(f"holdfast.tensorflow.keras needs {name}. Install it with: pip install {wanted}", name=name)
    return importlib.import_module(name)
