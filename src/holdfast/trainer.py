"""`DataParallelTrainer`: hands a function to workers and gives back what came of it."""

from __future__ import annotations

import datetime
import functools
import inspect
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.config import RunConfig, ScalingConfig, ValidationConfig
from holdfast.controller.callbacks import UserCallback
from holdfast.errors import ConfigurationError
from holdfast.fit import Fit
from holdfast.former import FormerMethod, knows_former_arguments
from holdfast.origin import Origin
from holdfast.progress import make_progress, warnings_shown
from holdfast.reported import ReportedCheckpoint
from holdfast.result import Result
from holdfast.run import Run
from holdfast.secrecy import PickledWithoutSecrets, url_without_secrets
from holdfast.signatures import takes_config
from holdfast.stores import check_place, open_store
from holdfast.worker import context
from holdfast.worker.backend import BackendConfig
from holdfast.worker.shipping import pack

_DEFAULT_STORAGE = "~/holdfast_results"
_RESUMES = "fit() with the same RunConfig.name and storage_path goes on by itself; resume_from= begins with what another run has"


@knows_former_arguments
class DataParallelTrainer(PickledWithoutSecrets):
    """Runs a function on N workers and keeps what they report.

    Example:
        >>> trainer = DataParallelTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

    restore, can_restore = FormerMethod(_RESUMES), FormerMethod(_RESUMES)

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        backend_config: BackendConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
        dataset_config: Any = None,
        validation_config: ValidationConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        resume_from: Checkpoint | ReportedCheckpoint | Run | str | os.PathLike[str] | None = None,
    ) -> None:
        """Takes what to run and how; nothing starts before `fit()`.

        Args:
            train_loop_per_worker: Runs on every worker; takes the config, or nothing.
            train_loop_config: Handed to the function.
            backend_config: How a framework prepares workers.
            scaling_config: How many workers; one by default.
            run_config: Where the run lies and how it is kept.
            datasets: Not taken: pass data by `train_loop_config` or load it in the function.
            dataset_config: As `datasets`.
            validation_config: What validates checkpoints beside training, where a report asks for it.
            metadata: Accepted for scripts that pass it; kept in the run's record.
            resume_from: What `get_checkpoint()` gives as long as the run has no checkpoint of its own: a `Checkpoint`, a `Run` (its
                latest), or the path or URL of either, also of a run of Ray Train's. Once the run has committed one, its own counts,
                also in a later `fit()`. It is looked for, and its bytes compared, when `fit()` needs it.

        Raises:
            ConfigurationError: An argument cannot work.
        """
        if not callable(train_loop_per_worker):
            raise ConfigurationError(f"train_loop_per_worker must be a function, not {train_loop_per_worker!r}")
        _check_plain(train_loop_per_worker)
        takes_config(train_loop_per_worker, "train_loop_per_worker")  # raises where it takes more
        if train_loop_config is not None and not isinstance(train_loop_config, dict):
            raise ConfigurationError(f"train_loop_config must be a dict, not {type(train_loop_config).__name__}")
        if datasets or dataset_config is not None:
            raise ConfigurationError(
                "datasets= and dataset_config= belong to Ray Data and are not taken here; load the data inside the function, "
                "or pass where it lies by train_loop_config"
            )
        for value, kind, name in (
            (scaling_config, ScalingConfig, "scaling_config"),
            (run_config, RunConfig, "run_config"),
            (backend_config, BackendConfig, "backend_config"),
            (validation_config, ValidationConfig, "validation_config"),
        ):
            if value is not None and not isinstance(value, kind):
                raise ConfigurationError(f"{name} must be a {kind.__name__}, not {value!r}")
        if resume_from is not None:
            Origin(resume_from)  # raises where it is of a wrong kind
        self.train_loop_per_worker = train_loop_per_worker
        self.train_loop_config = train_loop_config
        self.backend_config = backend_config or BackendConfig()
        self.scaling_config = scaling_config or ScalingConfig()
        self.run_config = run_config or RunConfig()
        self.validation_config = validation_config
        self.metadata = dict(metadata or {})
        self.resume_from = resume_from
        _check_run(self.run_config)

    def _without_secrets(self) -> dict[str, Any]:
        given = self.resume_from
        return {**self.__dict__, "resume_from": url_without_secrets(given) if isinstance(given, str) else given}

    def fit(self) -> Result:
        """Runs the function to its end, through failures, and returns what came of it.

        Called again with the same `RunConfig.name` and `storage_path` it resumes the run from its latest checkpoint.

        Returns:
            The `Result`; what was committed is there when this returns.

        Raises:
            WorkerGroupError: Workers failed more often than `FailureConfig.max_failures` allows.
            ControllerError: The driver's own side failed.
            TrainingInterrupted: Ctrl-C or SIGTERM; a KeyboardInterrupt.
            ConfigurationError: The storage path, the resources or the function cannot work.
            RunInUseError: Another live driver holds the run.
            DamagedCheckpointError: What `resume_from` names is needed, and not what was reported.
        """
        if context.is_inside():
            raise ConfigurationError("fit() was called inside a training function; call it from the script that drives")
        in_process = self.scaling_config.num_workers == 0
        payload = b"" if in_process else pack(self.train_loop_per_worker, self.train_loop_config, self.backend_config)
        name = self.run_config.name or _generated_name(self.train_loop_per_worker)
        root = open_store(
            self.run_config.storage_path
            if self.run_config.storage_path is not None
            else Path(_DEFAULT_STORAGE).expanduser(),
            self.run_config.storage_filesystem,
            self.run_config.storage_options,
        )
        if root.is_of_this_process and not (in_process and self.validation_config is None):
            raise ConfigurationError(
                f"{root.url!r} lies in this process's memory, which no worker and no validation can reach; give a path or URL that all "
                "can, or num_workers=0 and no validation, to run everything here"
            )
        kept = self.run_config.checkpoint_config
        wanted = self.run_config.progress
        progress = make_progress(
            # A debugger's prompt, or whatever the function asks for, must not be drawn over.
            "plain" if in_process and wanted == "auto" and not os.environ.get("HOLDFAST_PROGRESS") else wanted,
            name,
            score_attribute=kept.checkpoint_score_attribute,
            score_order=kept.checkpoint_score_order,
        )
        try:
            with warnings_shown(progress):
                return Fit(self, payload, name, root, progress).run()
        finally:
            progress.close()


def _check_plain(function: Callable[..., Any]) -> None:
    """Refuses what would be called and not run: coroutines and generators."""
    plain = functools.reduce(lambda f, _: getattr(f, "func", f), range(8), function)
    if not inspect.isroutine(plain):
        plain = type(plain).__call__
    for kind, what in (
        (inspect.iscoroutinefunction, "an async function, which"),
        (inspect.isasyncgenfunction, "an async generator, which"),
        (inspect.isgeneratorfunction, "a generator, which"),
    ):
        if kind(plain):
            raise ConfigurationError(
                f"train_loop_per_worker {getattr(plain, '__qualname__', plain)!r} is {what} would be called without being "
                "run; pass a plain function (with asyncio.run(...) or a loop over it inside)"
            )


def _check_run(config: RunConfig) -> None:
    """What the config itself cannot look at, for it knows no stores and no callbacks."""
    if config.storage_path is not None:
        check_place(config.storage_path, config.storage_filesystem, config.storage_options)
    for callback in config.callbacks or ():
        if not isinstance(callback, UserCallback):
            is_class = isinstance(callback, type)
            remedy = (
                f"is a class; pass an instance, {callback.__name__}(...)"
                if is_class
                else "does not derive from holdfast.UserCallback"
            )
            raise ConfigurationError(f"RunConfig.callbacks: {callback!r} {remedy}")


def _generated_name(function: Callable[..., Any]) -> str:
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return f"run_{stamp}_{secrets.token_hex(2)}"
