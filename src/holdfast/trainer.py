"""`DataParallelTrainer`: hands a function to workers and gives back what came of it."""

from __future__ import annotations

import datetime
import functools
import inspect
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from holdfast.config import CheckpointConfig, RunConfig, ScalingConfig
from holdfast.controller.attempt import Limits
from holdfast.controller.callbacks import UserCallback
from holdfast.controller.controller import Controller, Outcome
from holdfast.controller.failure import signal_name, summarise
from holdfast.controller.reactor import Reactor
from holdfast.controller.rounds import Bounds
from holdfast.engines.in_process import InProcessEngine
from holdfast.engines.local.engine import LocalEngine
from holdfast.errors import ConfigurationError, ControllerError, HoldfastError, TrainingInterrupted, WorkerGroupError
from holdfast.interrupts import handle_interrupts
from holdfast.metrics import decode_metrics
from holdfast.persistence.layout import LOGS
from holdfast.persistence.writer import RunWriter
from holdfast.progress import make_progress
from holdfast.result import Result
from holdfast.stores import open_store
from holdfast.worker import context, protocol
from holdfast.worker.backend import BackendConfig
from holdfast.worker.shipping import pack

if TYPE_CHECKING:
    from holdfast.controller.group import Engine
    from holdfast.progress import Progress
    from holdfast.records import CommittedCheckpoint
    from holdfast.stores.base import Store

logger = logging.getLogger("holdfast")

_DEFAULT_STORAGE = "~/holdfast_results"


class DataParallelTrainer:
    """Runs a function on N workers and keeps what they report.

    Example:
        >>> trainer = DataParallelTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> result = trainer.fit()
    """

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
        validation_config: Any = None,
        metadata: Mapping[str, Any] | None = None,
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
            validation_config: Not in this version.
            metadata: Accepted for scripts that pass it; kept in the run's record.

        Raises:
            ConfigurationError: An argument cannot work.
        """
        if not callable(train_loop_per_worker):
            raise ConfigurationError(f"train_loop_per_worker must be a function, not {train_loop_per_worker!r}")
        _check_plain(train_loop_per_worker)
        if train_loop_config is not None and not isinstance(train_loop_config, dict):
            raise ConfigurationError(f"train_loop_config must be a dict, not {type(train_loop_config).__name__}")
        if datasets or dataset_config is not None:
            raise ConfigurationError(
                "datasets= and dataset_config= belong to Ray Data and are not taken here; load the data inside the function, "
                "or pass where it lies by train_loop_config"
            )
        if validation_config is not None:
            raise ConfigurationError("validation_config=: this version does not validate beside training; leave it out")
        for value, kind, name in (
            (scaling_config, ScalingConfig, "scaling_config"),
            (run_config, RunConfig, "run_config"),
            (backend_config, BackendConfig, "backend_config"),
        ):
            if value is not None and not isinstance(value, kind):
                raise ConfigurationError(f"{name} must be a {kind.__name__}, not {value!r}")
        self.train_loop_per_worker = train_loop_per_worker
        self.train_loop_config = train_loop_config
        self.backend_config = backend_config or BackendConfig()
        self.scaling_config = scaling_config or ScalingConfig()
        self.run_config = run_config or RunConfig()
        self.metadata = dict(metadata or {})
        for callback in self.run_config.callbacks or ():
            if not isinstance(callback, UserCallback):
                raise ConfigurationError(
                    f"RunConfig.callbacks: {callback!r} does not derive from holdfast.UserCallback"
                )

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
            return _Fit(self, payload, name, root, progress).run()
        finally:
            progress.close()


class _Fit:
    """One call of `fit()`."""

    def __init__(
        self, trainer: DataParallelTrainer, payload: bytes, name: str, root: Store, progress: Progress
    ) -> None:
        self._trainer = trainer
        self._config = trainer.run_config
        self._payload = payload
        self._name = name
        self._root = root
        self._store = root.child(name)
        self._progress = progress
        self._in_process = trainer.scaling_config.num_workers == 0

    def run(self) -> Result:
        engine = self._make_engine()
        engine.prepare()
        try:
            engine.world_size()  # too few GPUs are said before anything is written
            writer = self._open_run()
            outcome = Outcome()
            try:
                outcome = self._drive(engine, writer)
            finally:
                writer.close(at_once=outcome.at_once)
        finally:
            engine.close()
        value = engine.value if isinstance(engine, InProcessEngine) else _unpickled(outcome.value)
        return self._conclude(outcome, value, writer.checkpoints())

    def _make_engine(self) -> Engine:
        trainer = self._trainer
        if self._in_process:
            return InProcessEngine(trainer.train_loop_per_worker, trainer.train_loop_config, trainer.backend_config)
        return LocalEngine(trainer.scaling_config, trainer.backend_config, self._store, self._progress.worker_line)

    def _open_run(self) -> RunWriter:
        checkpoint_config = self._config.checkpoint_config
        return RunWriter.open(
            self._store,
            name=self._name,
            checkpoint_config=checkpoint_config,
            durability=self._config.durability,
            configuration=_as_text(self._trainer),
        )

    def _drive(self, engine: Engine, writer: RunWriter) -> Outcome:
        reactor = Reactor()
        config = self._config
        controller = Controller(
            reactor=reactor,
            writer=writer,
            engine=engine,
            observer=self._progress,
            make_job=self._make_job,
            open_checkpoint=self._open_checkpoint,
            failure_config=config.failure_config,
            checkpoint_config=config.checkpoint_config,
            limits=Limits(
                config.late_rank_warning_s,
                config.late_rank_timeout_s,
                config.stop_grace_s,
                Bounds(config.max_pending_checkpoints, config.max_pending_bytes),
                raises_upload_errors=config.on_upload_error == "raise",
            ),
            callbacks=tuple(config.callbacks or ()),
        )
        try:
            if isinstance(engine, InProcessEngine):
                return _drive_in_thread(controller, engine)
            with handle_interrupts(controller.stop_soon):
                return controller.run()
        finally:
            reactor.close()

    def _make_job(
        self, rank: int, world_size: int, attempt: int, first_report: int, checkpoint: str | None
    ) -> protocol.Job:
        variables = (self._config.worker_runtime_env or {}).get("env_vars", {})
        return protocol.Job(
            payload=self._payload,
            environment={str(key): str(value) for key, value in variables.items()},
            search_path=[],
            argv=[],
            directory="",
            rank=rank,
            world_size=world_size,
            local_rank=0,
            local_world_size=0,
            node_rank=0,
            run_name=self._name,
            storage_url=self._root.url,
            run_url=self._store.url,
            attempt=attempt,
            checkpoint=checkpoint,
            first_report=first_report,
            score_attribute=self._config.checkpoint_config.checkpoint_score_attribute,
        )

    def _open_checkpoint(self, name: str) -> Any:
        from holdfast.checkpoint import Checkpoint

        return Checkpoint(f"{self._store.url}/{name}")

    def _conclude(self, outcome: Outcome, value: Any, checkpoints: list[CommittedCheckpoint]) -> Result:
        error = self._error_of(outcome)
        metrics = decode_metrics(outcome.metrics) if outcome.metrics is not None else None
        result = Result.of_run(
            self._store,
            metrics=metrics,
            error=error,
            return_value=value,
            checkpoint_config=self._config.checkpoint_config,
            checkpoints=checkpoints,
            filesystem=self._config.storage_filesystem,
        )
        if error is None:
            self._progress.finished(f"finished; {self._store.url}")
            return result
        if isinstance(error, WorkerGroupError | ControllerError | TrainingInterrupted):
            error.result = result
        self._progress.finished(f"ended: {str(error).splitlines()[0]}; {self._store.url}")
        raise error

    def _error_of(self, outcome: Outcome) -> BaseException | None:
        if outcome.signum is not None:
            return TrainingInterrupted(
                f"run {self._name!r} was stopped by {signal_name(outcome.signum)}; what was committed is kept, fit() again "
                "with the same name and storage_path goes on from there",
                outcome.signum,
            )
        failure = outcome.controller_failure
        if failure is not None:
            if isinstance(failure, ConfigurationError):
                return failure
            error = ControllerError(
                f"run {self._name!r}: the driver failed: {type(failure).__name__}: {failure}", failure
            )
            error.__cause__ = failure
            return error
        if outcome.failures:
            times = f"{outcome.attempts} attempt" + ("s" if outcome.attempts > 1 else "")
            group_error = WorkerGroupError(
                f"run {self._name!r} failed after {times} (FailureConfig.max_failures="
                f"{self._config.failure_config.max_failures}): {summarise(outcome.failures)}. The workers' output is kept in "
                f"{self._store.url}/{LOGS}",
                outcome.failures,
            )
            # A person who lets it end the script sees the worker's own traceback first.
            group_error.__cause__ = outcome.failures[min(outcome.failures)]
            return group_error
        return None


def _drive_in_thread(controller: Controller, engine: InProcessEngine) -> Outcome:
    outcomes: list[Outcome] = []

    def drive() -> None:
        try:
            outcomes.append(controller.run())
        finally:
            engine.close()

    is_stopping = False

    def stop(signum: int) -> None:
        nonlocal is_stopping
        # The second time the function is in the middle of something long, or the person insists.
        if is_stopping and engine.is_running:
            raise KeyboardInterrupt
        is_stopping = True
        controller.stop_soon(signum)

    thread = threading.Thread(target=drive, name="holdfast-controller", daemon=True)
    thread.start()
    with handle_interrupts(stop):
        try:
            engine.run_work()
        except KeyboardInterrupt:
            if not is_stopping:  # raised by the function itself
                controller.stop_soon(signal.SIGINT)
            engine.cancel()
        thread.join()
    if not outcomes:
        raise HoldfastError("the driver's loop ended without an outcome; its traceback stands above")
    return outcomes[0]


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


def _generated_name(function: Callable[..., Any]) -> str:
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return f"run_{stamp}_{secrets.token_hex(2)}"


def _as_text(trainer: DataParallelTrainer) -> dict[str, str]:
    """The configuration, for a person who looks at the run later, and for `Run.best`."""
    kept: CheckpointConfig = trainer.run_config.checkpoint_config
    function = functools.reduce(lambda f, _: getattr(f, "func", f), range(8), trainer.train_loop_per_worker)
    return {
        "function": getattr(function, "__qualname__", repr(function)),
        "script": sys.argv[0] if sys.argv else "",
        "directory": os.getcwd(),
        "num_workers": str(trainer.scaling_config.num_workers),
        "use_gpu": str(trainer.scaling_config.use_gpu),
        "num_to_keep": "" if kept.num_to_keep is None else str(kept.num_to_keep),
        "checkpoint_score_attribute": kept.checkpoint_score_attribute or "",
        "checkpoint_score_order": kept.checkpoint_score_order,
        **{f"metadata.{key}": str(value) for key, value in trainer.metadata.items()},
    }


def _unpickled(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return cloudpickle.loads(value)
    except Exception as error:  # noqa: BLE001 - a user's class may do anything when it is unpickled
        logger.warning("the function's return value cannot be read here: %s", error)
        return None
