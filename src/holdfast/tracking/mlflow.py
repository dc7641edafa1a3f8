"""MLflow: a run on a tracking server, or wherever its tracking URI leads."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.controller.callbacks import RunContext
from holdfast.tracking.callback import TrackerCallback
from holdfast.tracking.entry import Entry, Scalar
from holdfast.tracking.tracker import Ending, Tracker, import_library

_RUN_ID = "holdfast.run_id"
_RUN_PATH = "holdfast.path"
_CHECKPOINT = "holdfast.checkpoint"
# What the server takes in one request (mlflow.utils.validation).
_MAX_METRICS = 1000
_MAX_PARAMETERS = 100
_MAX_NAME = 250
_STATUS = {Ending.SUCCEEDED: "FINISHED", Ending.FAILED: "FAILED", Ending.INTERRUPTED: "KILLED"}


class MLflowCallback(TrackerCallback):
    """Logs to an MLflow run, which is found again by the tag `holdfast.run_id` when ours is resumed.

    The path of the latest checkpoint is the tag `holdfast.checkpoint`, the `train_loop_config` the run's parameters. MLflow never changes a
    parameter, so one that has another value in a later `fit()` is the tag `holdfast.param.NAME`. It uses a client of its own: the
    run that `mlflow.start_run()` made in your script is not touched.
    """

    name = "MLflow"

    def __init__(
        self,
        experiment_name: str | None = None,
        *,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        step: str | None = None,
        flush_timeout_s: float = 10.0,
    ) -> None:
        """Needs `pip install holdfast[mlflow]`, or `mlflow` itself.

        Args:
            experiment_name: Made where there is none; by default that of `MLFLOW_EXPERIMENT_NAME`, or `Default`.
            tracking_uri: By default what MLflow itself goes by (`mlflow.set_tracking_uri`, `MLFLOW_TRACKING_URI`).
            tags: More tags for the run.
            step: As for `TrackerCallback`.
            flush_timeout_s: As for `TrackerCallback`.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: MLflow is not installed.
        """
        super().__init__(step=step, flush_timeout_s=flush_timeout_s)
        import_library("mlflow", "MLflowCallback", "mlflow")
        self._experiment = experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        self._tracking_uri = tracking_uri
        self._tags = dict(tags or {})

    def open_tracker(self, run_context: RunContext, parameters: Mapping[str, Scalar]) -> Tracker:
        """Finds or makes the experiment and the run."""
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri)
        experiment = client.get_experiment_by_name(self._experiment)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        found = client.search_runs([experiment_id], f"tags.`{_RUN_ID}` = '{run_context.run_id}'", max_results=1)
        if found:
            run = found[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {**self._tags, _RUN_ID: run_context.run_id, _RUN_PATH: run_context.path}
            run = client.create_run(experiment_id, tags=tags, run_name=run_context.name)
        _log_parameters(client, run, parameters)
        return _Run(client, run.info.run_id)


class _Run(Tracker):
    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    def log(self, entries: Sequence[Entry]) -> None:
        """As few requests as MLflow's limits allow; texts are left out, for it has numbers only."""
        from mlflow.entities import Metric

        metrics = [
            Metric(_name(name), number, round(entry.time_s * 1000), entry.step)
            for entry in entries
            for name, number in entry.numbers.items()
        ]
        for first in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + _MAX_METRICS])
        checkpoint = next((entry.checkpoint for entry in reversed(entries) if entry.checkpoint is not None), None)
        if checkpoint is not None:
            self._client.set_tag(self._run_id, _CHECKPOINT, checkpoint)

    def finish(self, ending: Ending) -> None:
        """Says how it ended."""
        self._client.set_terminated(self._run_id, _STATUS[ending])


def _log_parameters(client: Any, run: Any, parameters: Mapping[str, Scalar]) -> None:
    from mlflow.entities import Param, RunTag

    known = run.data.params
    given = {_name(name): str(value) for name, value in parameters.items()}
    new = [Param(name, value) for name, value in given.items() if name not in known]
    changed = [
        RunTag(f"holdfast.param.{name}"[:_MAX_NAME], value)
        for name, value in given.items()
        if name in known and known[name] != value
    ]
    for first in range(0, len(new), _MAX_PARAMETERS):
        client.log_batch(run.info.run_id, params=new[first : first + _MAX_PARAMETERS])
    for first in range(0, len(changed), _MAX_PARAMETERS):
        client.log_batch(run.info.run_id, tags=changed[first : first + _MAX_PARAMETERS])


def _name(name: str) -> str:
    """What MLflow takes as a name: some signs only, and what would be a path inside of the run's directory."""
    signs = re.sub(r"[^\w\-. :/]", "_", name).replace("..", "_")
    return posixpath.normpath(signs).lstrip("/")[:_MAX_NAME] or "_"
