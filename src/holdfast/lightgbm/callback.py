"""The callback that reports what LightGBM measures, with checkpoints of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.boosting import RoundReporter
from holdfast.checkpoint import Checkpoint
from holdfast.errors import ConfigurationError
from holdfast.lightgbm.config import check_installed
from holdfast.lightgbm.early_stopping import Watch
from holdfast.worker.context import get_context

if TYPE_CHECKING:
    import lightgbm

# Each with LightGBM's other names for it.
_LEARNER = ("tree_learner", "tree", "tree_type", "tree_learner_type")
_MACHINES = ("machines", "workers", "nodes")
_NUM_MACHINES = ("num_machines", "num_machine")


class RayTrainReportCallback(RoundReporter):
    """Reports after every round of `lightgbm.train`, on every rank, and stores rank 0's model, which all have alike.

    Metrics are named by their data set and LightGBM's name: `valid_0-l2`.

    Example:
        >>> lightgbm.train(params, data, valid_sets=[valid], callbacks=[RayTrainReportCallback(frequency=10)])
    """

    CHECKPOINT_NAME: ClassVar[str] = "model.txt"

    def __init__(
        self,
        metrics: str | Sequence[str] | Mapping[str, str] | None = None,
        filename: str | None = None,
        frequency: int = 0,
        checkpoint_at_end: bool = True,
        results_postprocessing_fn: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        *,
        early_stopping: Callable[[lightgbm.callback.CallbackEnv], None] | None = None,
    ) -> None:
        """Says what is reported, and how often the model is stored with it.

        Args:
            metrics: As for `RoundReporter`, and so the others.
            early_stopping: `lightgbm.early_stopping(...)`, given to this callback instead of beside it: what it has seen is stored with the
                model, and after a resume it goes on as if nothing had happened.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: LightGBM is not installed.
        """
        check_installed()
        super().__init__(metrics, filename, frequency, checkpoint_at_end, results_postprocessing_fn)
        if early_stopping is not None and not callable(early_stopping):
            raise ConfigurationError(
                f"RayTrainReportCallback(early_stopping=...) takes a callback, not {early_stopping!r}; write lightgbm.early_stopping(...)"
            )
        self._watch = Watch(early_stopping) if early_stopping is not None else None
        if early_stopping is not None:
            # As LightGBM orders callbacks: what ends the training comes after what wants to know of its last round.
            self.order: int = getattr(early_stopping, "order", 30)

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
        check_installed()
        import lightgbm

        with checkpoint.as_directory() as directory:
            return lightgbm.Booster(model_file=Path(directory, filename))

    def __call__(self, env: lightgbm.callback.CallbackEnv) -> None:
        """Reports the round.

        Raises:
            OutsideWorkerError: Called outside a training function.
            ConfigurationError: Each worker trains by itself, or another such callback reports this training.
            MetricsError: A metric that was asked for is not there.
            EarlyStopException: The early stopping that it was given ends the training.
            FormatError: What a checkpoint remembers for early stopping cannot be read.
        """
        if env.iteration == env.begin_iteration:
            _check_together(env.params)
            self._begin(env.model, env.begin_iteration, "init_model")
            if self._watch is not None:
                self._watch.begin(env, self._resumable())
        # Before the report, which stores what it has seen.
        stop = self._watch.stops(env) if self._watch is not None else None
        num_rounds = env.iteration + 1
        is_last = self._checkpoint_at_end and (num_rounds == env.end_iteration or stop is not None)
        self._report(
            _measured(env.evaluation_result_list or []), env.model if is_last or self._is_due(num_rounds) else None
        )
        if stop is not None:
            raise stop

    def _add(self, directory: str, model: Any) -> None:
        if self._watch is not None:
            self._watch.write(directory, model)


def _measured(results: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """By name; those of `lightgbm.cv` have a mean and a standard deviation."""
    measured = {}
    for data, name, value, _, *deviation in results:
        measured[f"{data}-{name}-mean" if deviation else f"{data}-{name}"] = value
        if deviation:
            measured[f"{data}-{name}-stdv"] = deviation[0]
    return measured


def _check_together(params: Mapping[str, Any]) -> None:
    """Where each worker trains a model by itself, of which all but rank 0's would be lost without a word."""
    there = get_context().get_world_size()
    machines = _first(params, _MACHINES, "")
    here = int(_first(params, _NUM_MACHINES, len(machines.split(",") if isinstance(machines, str) else machines)))
    is_serial = _first(params, _LEARNER, "serial") == "serial"
    if there == 1 or (here == there and not is_serial):
        return
    what = f"knows of {here}" if here != there else "is to train with tree_learner='serial'"
    raise ConfigurationError(
        f"there are {there} workers, and LightGBM {what}: each would train a model by itself, on its own rows, and only rank 0's be "
        "stored; run the function with holdfast.lightgbm.LightGBMTrainer, and give lightgbm.train the parameters tree_learner='data', "
        "pre_partition=True and **get_network_params(); or use num_workers=1"
    )


def _first(params: Mapping[str, Any], names: Sequence[str], default: Any) -> Any:
    return next((params[name] for name in names if params.get(name)), default)
