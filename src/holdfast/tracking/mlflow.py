"""MLflow: a run on a tracking server, or wherever its tracking URI leads."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from holdfast.controller.callbacks import RunContext
from holdfast.tracking.callback import TrackerCallback
from holdfast.tracking.entry import Scalar
from holdfast.tracking.mlflow_run import MLflowRun
from holdfast.tracking.mlflow_uri import check_reachable, check_uri
from holdfast.tracking.tracker import Tracker, import_library

_RUN_ID = "holdfast.run_id"
_RUN_PATH = "holdfast.path"


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
            tracking_uri: By default what MLflow itself goes by (`mlflow.set_tracking_uri`, `MLFLOW_TRACKING_URI`, else `mlflow.db` in the
                working directory).
            tags: More tags for the run.
            step: As for `TrackerCallback`.
            flush_timeout_s: As for `TrackerCallback`.

        Raises:
            ConfigurationError: An argument cannot work, or the MLflow that is installed cannot go where the tracking URI leads.
            ImportError: MLflow is not installed.
        """
        super().__init__(step=step, flush_timeout_s=flush_timeout_s)
        import_library("mlflow", "MLflowCallback", "mlflow")
        check_uri(tracking_uri)
        self._experiment = experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        self._tracking_uri = tracking_uri
        self._tags = dict(tags or {})

    def open_tracker(self, run_context: RunContext, parameters: Mapping[str, Scalar]) -> Tracker:
        """Finds or makes the experiment and the run."""
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri)
        check = functools.partial(check_reachable, client.tracking_uri)
        check()
        return MLflowRun(client, self._find_run(client, run_context), parameters, check)

    def _find_run(self, client: Any, run_context: RunContext) -> Any:
        experiment = client.get_experiment_by_name(self._experiment)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        found = client.search_runs([experiment_id], f"tags.`{_RUN_ID}` = '{run_context.run_id}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0]
        tags = {**self._tags, _RUN_ID: run_context.run_id, _RUN_PATH: run_context.path}
        return client.create_run(experiment_id, tags=tags, run_name=run_context.name)
