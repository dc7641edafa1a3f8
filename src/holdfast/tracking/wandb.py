"""Weights & Biases: a run of its service, or of its offline directory."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.controller.callbacks import RunContext
from holdfast.errors import ConfigurationError
from holdfast.tracking.callback import TrackerCallback
from holdfast.tracking.entry import Entry, Scalar
from holdfast.tracking.tracker import Ending, Tracker, import_library

logger = logging.getLogger("holdfast")
_STEP = "holdfast/step"
_MAX_NAME = 128
_OURS = {"id": "the run's own id", "resume": "'allow'", "reinit": "'create_new'"}


class WandbCallback(TrackerCallback):
    """Logs to a run of Weights & Biases that has our run's id, so a resumed run goes on there.

    Metrics are drawn over `holdfast/step`, for the service's own step can never go back, and training does after a failure. Each checkpoint
    is a version of the artifact `checkpoint-RUN`, which refers to its path and uploads nothing; the `train_loop_config` is the run's
    config. A run that `wandb.init()` made in your script is not touched.
    """

    name = "Weights & Biases"

    def __init__(
        self, *, step: str | None = None, flush_timeout_s: float = 10.0, artifacts: bool = True, **init: Any
    ) -> None:
        """Needs `pip install holdfast[wandb]`.

        Args:
            step: As for `TrackerCallback`.
            flush_timeout_s: As for `TrackerCallback`.
            artifacts: Whether each checkpoint becomes a version of an artifact.
            init: What `wandb.init` takes (`project`, `entity`, `mode="offline"`, `dir`, `tags`, …), but for `id`, `resume` and `reinit`.

        Raises:
            ConfigurationError: An argument cannot work, or the service is wanted and there is no API key.
            ImportError: wandb is not installed.
        """
        super().__init__(step=step, flush_timeout_s=flush_timeout_s)
        for name, value in _OURS.items():
            if name in init:
                raise ConfigurationError(
                    f"WandbCallback: {name} is {value}, by which a run is found again; leave it out"
                )
        import_library("wandb", "WandbCallback", "wandb")
        _check_login(init.get("mode") or os.environ.get("WANDB_MODE") or "online")
        self._artifacts = artifacts
        self._init = init

    def open_tracker(self, run_context: RunContext, parameters: Mapping[str, Scalar]) -> Tracker:
        """Begins the run, or goes on with it."""
        import wandb

        options = {"name": run_context.name, **self._init}
        options["config"] = {**parameters, **(options.get("config") or {})}
        settings = self._settings(options.pop("settings", None))
        run = wandb.init(
            **options,
            id=run_context.run_id,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        run.define_metric(_STEP, hidden=True)
        run.define_metric("*", step_metric=_STEP)
        artifact = f"checkpoint-{re.sub(r'[^A-Za-z0-9_.-]', '_', run_context.name)}"[:_MAX_NAME]
        return _Run(run, artifact if self._artifacts else None)

    def _settings(self, given: Any) -> Any:
        import wandb

        settings = wandb.Settings(console="off")  # what the driver prints is no output of training
        if "finish_timeout" in wandb.Settings.model_fields:
            settings.finish_timeout = self._flush_timeout_s  # else the end of the script waits for the service, too
        if isinstance(given, Mapping):
            settings.update_from_dict(dict(given))
        elif given is not None:
            settings.update_from_settings(given)
        return settings


class _Run(Tracker):
    def __init__(self, run: Any, artifact: str | None) -> None:
        self._run = run
        self._artifact = artifact

    def log(self, entries: Sequence[Entry]) -> None:
        """Texts, too: they show in the run's table."""
        for entry in entries:
            self._run.log({**entry.metrics, _STEP: entry.step})
            if entry.checkpoint is not None:
                self._run.summary["holdfast/checkpoint"] = entry.checkpoint
                self._refer_to(entry.checkpoint, entry.step)

    def finish(self, ending: Ending) -> None:
        """Waits until the service has everything, or the offline directory."""
        self._run.finish(exit_code=0 if ending is Ending.SUCCEEDED else 1)

    def _refer_to(self, checkpoint: str, step: int) -> None:
        import wandb

        if self._artifact is None:
            return
        artifact = wandb.Artifact(self._artifact, type="model", metadata={"path": checkpoint, "step": step})
        try:
            artifact.add_reference(checkpoint if "://" in checkpoint else Path(checkpoint).as_uri(), checksum=False)
        except (ImportError, OSError, ValueError, wandb.Error) as error:
            # Retention may have deleted it by now; a bucket's library may not be there.
            logger.debug("no artifact refers to %s: %s", checkpoint, error)
            return
        self._run.log_artifact(artifact)


def _check_login(mode: str) -> None:
    """Asks for the key, if need be, here: later there is nobody who could answer."""
    import wandb

    if mode not in ("online", "shared"):
        return
    try:
        is_known, why = wandb.login(verify=False), ""  # whether the service is there is looked at by the thread
    except wandb.Error as error:
        is_known, why = False, f" ({error})"
    if not is_known:
        raise ConfigurationError(
            f'WandbCallback: there is no API key{why}. Run `wandb login`, set WANDB_API_KEY, or pass mode="offline"'
        )
