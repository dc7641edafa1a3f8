"""Weights & Biases: a run of its service, or of its offline directory."""

from __future__ import annotations

import inspect
import logging
import os
import re
import time
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
_RESERVED = ("_runtime", "_step", "_timestamp", "_wandb", _STEP)
_WITH_SERVICE = ("online", "run", "shared")
# When this process opened the last one.
_opened_s = 0
_OURS = {"id": "the run's own id", "resume": "'allow'", "reinit": "'create_new'"}


class WandbCallback(TrackerCallback):
    """Logs to a run of Weights & Biases that has our run's id, so a resumed run goes on there.

    Metrics are drawn over `holdfast/step`, for the service's own step can never go back, and training does after a failure: that one is the
    index of the report. Each checkpoint is a version of the artifact `checkpoint-RUN`, which refers to its path and uploads nothing; the `train_loop_config` is the run's
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
        wandb = import_library("wandb", "WandbCallback", "wandb")
        known = inspect.signature(wandb.init).parameters
        for name in init:
            if name not in known:
                raise ConfigurationError(f"WandbCallback: neither it nor wandb.init takes {name!r}")
        if not isinstance(init.get("config") or {}, Mapping):
            raise ConfigurationError(f"WandbCallback: config must be a dict, not {init['config']!r}")
        _check_login(init)
        self._artifacts = artifacts
        self._init = init

    def open_tracker(self, run_context: RunContext, parameters: Mapping[str, Scalar]) -> Tracker:
        """Begins the run, or goes on with it."""
        global _opened_s
        import wandb

        options = {"name": run_context.name, **self._init}
        options["config"] = {
            **{_name(name): value for name, value in parameters.items()},
            **(options.get("config") or {}),
        }
        settings = self._settings(options.pop("settings", None))
        # W&B names a directory by the run's id and the second: two of one second would be one, which the later overwrites.
        while time.time() < _opened_s + 1:
            time.sleep(0.1)
        run = wandb.init(
            **options,
            id=run_context.run_id,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        _opened_s = int(time.time())
        run.define_metric(_STEP, hidden=True)
        run.define_metric("*", step_metric=_STEP)
        artifact = f"checkpoint-{re.sub(r'[^A-Za-z0-9_.-]', '_', run_context.name)}"[:_MAX_NAME]
        return _Run(run, artifact if self._artifacts else None)

    def _settings(self, given: Any) -> Any:
        import wandb

        settings = wandb.Settings(console="off")  # what the driver prints is no output of training
        if "finish_timeout" in wandb.Settings.model_fields:
            settings.finish_timeout = self._flush_timeout_s  # else the end of the script waits for the service, too
        settings.update_from_dict(_as_dict(given))
        return settings


class _Run(Tracker):
    def __init__(self, run: Any, artifact: str | None) -> None:
        self._run = run
        self._artifact = artifact
        self._takes_steps = run.settings.mode != "shared"
        self._next: int = run.step if self._takes_steps else 0

    def log(self, entries: Sequence[Entry]) -> None:
        """Texts, too: they show in the run's table."""
        for entry in entries:
            metrics = {_name(name): value for name, value in entry.metrics.items()}
            # Also where an earlier `fit()` went to another directory, as all do offline, each step is there once and they ascend. The
            # service may have more than our run, whose driver was killed.
            self._next = max(entry.report, self._next)
            place = {"step": self._next, "commit": True} if self._takes_steps else {}
            self._run.log({**metrics, _STEP: entry.step}, **place)
            self._next += 1
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


def _name(name: str) -> str:
    """What W&B keeps for itself it would take as its own, or drop."""
    return f"{name}_" if name in _RESERVED else name


def _check_login(init: Mapping[str, Any]) -> None:
    """Asks for the key here: later there is nobody who could answer a prompt, and now perhaps neither.

    Raises:
        ConfigurationError: There is none, and the service is wanted.
    """
    import wandb

    given = _as_dict(init.get("settings"))
    mode = init.get("mode") or given.get("mode") or os.environ.get("WANDB_MODE") or "online"
    if mode not in _WITH_SERVICE or given.get("api_key"):
        return
    try:
        is_known, why = _is_logged_in(), ""
    except wandb.Error as error:
        is_known, why = False, f" ({error})"
    # `wandb offline` and `wandb disabled` are kept in a file of settings.
    if not is_known and wandb.setup().settings.mode in _WITH_SERVICE:
        raise ConfigurationError(
            f'WandbCallback: there is no API key{why}. Run `wandb login`, set WANDB_API_KEY, or pass mode="offline"'
        )


def _as_dict(settings: Any) -> dict[str, Any]:
    """What was set in a `wandb.Settings`, or in what may be given in its place."""
    if settings is None or isinstance(settings, Mapping):
        return dict(settings or {})
    return {name: getattr(settings, name) for name in settings.model_fields_set}


def _is_logged_in() -> bool:
    """Whether there is a key; whether the service is there, and takes it, is found out by the thread."""
    import wandb

    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(verify=False, prompt=False))
    # Releases before would ask the terminal.
    return bool(wandb.api.api_key)
