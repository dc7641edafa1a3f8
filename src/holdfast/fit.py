"""One call of `fit()`: opens the run, drives it, and makes its result."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.conclusion import attempts_text, error_of, unpickled
from holdfast.config import CheckpointConfig, ScalingConfig
from holdfast.controller.callbacks import Callbacks, RunContext
from holdfast.controller.controller import Controller, Outcome
from holdfast.controller.failure import signal_name
from holdfast.controller.limits import Limits
from holdfast.controller.reactor import Reactor
from holdfast.controller.rounds import Bounds
from holdfast.controller.validations import Validations
from holdfast.engines.in_process import InProcessEngine, drive_in_thread
from holdfast.engines.local.engine import LocalEngine
from holdfast.errors import (
    ConfigurationError,
    ControllerError,
    StorageError,
    TrainingInterrupted,
    WorkerGroupError,
)
from holdfast.interrupts import StopRequests, exit_by_signal_where_uncaught
from holdfast.metrics import decode_metrics
from holdfast.origin import Origin
from holdfast.persistence.layout import validation_log_key
from holdfast.persistence.writer import RunWriter
from holdfast.result import Result
from holdfast.stores import plain_filesystem
from holdfast.worker import protocol
from holdfast.worker.backend import BackendConfig
from holdfast.worker.protocol import ValidationTerms
from holdfast.worker.shipping import Storage, pack_checkpoint, pack_storage
from holdfast.worker.validation import pack_defaults, pack_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.controller.group import Engine, Listener, WorkerGroup
    from holdfast.progress import Progress
    from holdfast.records import CommittedCheckpoint
    from holdfast.stores.base import Store
    from holdfast.trainer import DataParallelTrainer

logger = logging.getLogger("holdfast")


class Fit:
    """One call of `fit()`, from the storage's opening to its closing.

    Args:
        payload: The function and its config, packed for the workers; empty where it runs in this process.
        name: The run's.
        root: Where runs lie.
    """

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
        self._filesystem = plain_filesystem(self._config.storage_filesystem)
        self._in_process = trainer.scaling_config.num_workers == 0
        validation = trainer.validation_config
        # Where no other process needs it, the objects themselves will do.
        is_alone = self._in_process and validation is None
        self._storage = b"" if is_alone else pack_storage(root, self._filesystem)
        # Packed before anything starts: a function that cannot travel is told of at once.
        self._validation = pack_function(validation) if validation is not None else None
        self._validation_defaults = pack_defaults(validation) if validation is not None else None
        self._terms = ValidationTerms(validation.keywords, validation.given) if validation is not None else None
        self._origin = Origin(trainer.resume_from) if trainer.resume_from is not None else None
        self._beside: LocalEngine | None = None
        self._callbacks = Callbacks(self._config.callbacks or ())

    def run(self) -> Result:
        """Runs to the end.

        Raises:
            TrainingFailedError: As `DataParallelTrainer.fit` says.
            TrainingInterrupted: A signal ended it.
        """
        error: BaseException | None = None
        try:
            return self._run()
        except BaseException as raised:
            error = raised
            if isinstance(raised, TrainingInterrupted):
                exit_by_signal_where_uncaught()
            raise
        finally:
            if self._origin is not None:
                self._origin.let_go()
            self._store.hurry(on=False)
            self._callbacks.ended(error)

    def _run(self) -> Result:
        engine = self._make_engine()
        engine.prepare()
        try:
            engine.world_size()  # too few GPUs are said before anything is written
            stop = StopRequests()
            outcome: Outcome | None = None
            with stop.handled():
                writer = self._open_run(stop)
                run = writer.run_id, self._name, self._store.url, writer.first_attempt
                self._callbacks.begin(RunContext.of(self._trainer, *run))
                try:
                    outcome = self._find_origin(writer, stop) or self._drive(engine, writer, stop)
                finally:
                    stop.hand_to(lambda _: self._hurry(writer, stop))
                    self._close(writer, outcome)
            outcome.signum = outcome.signum or stop.signum
        finally:
            engine.close()
            if self._beside is not None:
                self._beside.close()
        value = engine.value if isinstance(engine, InProcessEngine) else unpickled(outcome.value)
        num_signals = stop.count
        with stop.handled():
            # It takes moments: only a store that is silent by now is hurried.
            stop.hand_to(lambda _: self._store.hurry() if stop.count > num_signals else None)
            result = self._conclude(outcome, value, writer.checkpoints())
        if outcome.signum is None and stop.count > num_signals and stop.signum is not None:
            signal.raise_signal(stop.signum)  # the run had ended, so it was meant for the script
        return result

    def _make_engine(self) -> Engine:
        trainer = self._trainer
        line = self._progress.worker_line
        if self._in_process:
            if self._validation is not None:
                self._beside = LocalEngine(ScalingConfig(), BackendConfig(), self._store, line)
                self._beside.prepare()
            return InProcessEngine(
                trainer.train_loop_per_worker,
                trainer.train_loop_config,
                trainer.backend_config,
                Storage(self._root, self._filesystem),
            )
        self._beside = LocalEngine(trainer.scaling_config, trainer.backend_config, self._store, line)
        return self._beside

    def _open_run(self, stop: StopRequests) -> RunWriter:
        """Becomes the run's driver, which may have to wait for the one before; dying in it leaves the run as it was."""
        try:
            with stop.raised(self._store.hurry):
                return RunWriter.open(
                    self._store,
                    name=self._name,
                    checkpoint_config=self._config.checkpoint_config,
                    durability=self._config.durability,
                    restart_cache_bytes=self._config.restart_cache_bytes,
                    configuration=_as_text(self._trainer),
                )
        except KeyboardInterrupt:
            if stop.signum is None:
                raise
            name = signal_name(stop.signum)
            raise TrainingInterrupted(
                f"run {self._name!r} was stopped by {name} before it began", stop.signum
            ) from None

    def _find_origin(self, writer: RunWriter, stop: StopRequests) -> Outcome | None:
        """Before a worker starts, what is wrong with `resume_from` is told, unless nobody needs it.

        Returns:
            How it ended, where a signal came while it was fetched.
        """
        if self._origin is None or writer.checkpoints():
            return None
        try:
            with stop.raised(self._origin.hurry):
                pack_checkpoint(self._origin.open())
        except KeyboardInterrupt:
            if stop.signum is None:
                raise
            # It may be the bucket of the run, too, which is to be closed as always.
            self._origin.hurry(on=False)
            return Outcome(signum=stop.signum)
        if self._origin.is_of_this_process and not self._in_process:
            raise ConfigurationError(
                f"resume_from={self._origin.place!r} lies in this process's memory, which no worker can reach; give a path or URL that "
                "all can, or num_workers=0"
            )
        return None

    def _close(self, writer: RunWriter, outcome: Outcome | None) -> None:
        """Closes the run; that it could not be closed well is the error only where there is no other."""
        try:
            writer.close()
        except StorageError as error:
            if outcome is not None and outcome.succeeded:
                outcome.controller_failure = error
            else:
                logger.warning("the last reports of %s could not be written: %s", self._store.url, error)

    def _hurry(self, writer: RunWriter, stop: StopRequests) -> None:
        """A signal while the run is being closed."""
        if stop.count > 1:
            writer.hurry()
        else:
            self._progress.message("stopping: what was committed is being flushed to disk; once more ends at once")

    def _drive(self, engine: Engine, writer: RunWriter, stop: StopRequests) -> Outcome:
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
            callbacks=self._callbacks,
            make_validations=self._make_validations(reactor, writer),
            origin=self._origin,
        )
        try:
            if isinstance(engine, InProcessEngine):
                if self._beside is not None:
                    self._beside.await_ready(reactor, lambda: stop.count > 0)
                return drive_in_thread(controller, engine, stop)
            stop.hand_to(controller.stop_soon)
            return controller.run()
        finally:
            reactor.close()

    def _make_validations(
        self, reactor: Reactor, writer: RunWriter
    ) -> Callable[[Callable[[], None]], Validations] | None:
        beside, function, defaults = self._beside, self._validation, self._validation_defaults
        if beside is None or function is None or defaults is None:
            return None

        def start(name: str, payload: bytes, listener: Listener) -> WorkerGroup | None:
            job = msgspec.structs.replace(
                self._make_job(0, 1, writer.first_attempt, 0, name), payload=payload, kept=writer.keeper.places(name)
            )
            return beside.start_beside(
                reactor,
                job,
                listener,
                validation_log_key(name),
                lambda _, text, is_stderr: self._progress.validation_line(name, text, is_stderr),
            )

        def make(settled: Callable[[], None]) -> Validations:
            return Validations(
                reactor,
                writer,
                self._progress,
                function=function,
                defaults=defaults,
                score=self._config.checkpoint_config.checkpoint_score_attribute,
                start=start,
                settled=settled,
            )

        return make

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
            storage=self._storage,
            attempt=attempt,
            checkpoint=checkpoint,
            first_report=first_report,
            score_attribute=self._config.checkpoint_config.checkpoint_score_attribute,
            validation=self._terms,
        )

    def _open_checkpoint(self, name: str) -> Any:
        from holdfast.checkpoint import Checkpoint

        return Checkpoint._from_store(self._store.child(name), filesystem=self._filesystem)

    def _conclude(self, outcome: Outcome, value: Any, checkpoints: list[CommittedCheckpoint]) -> Result:
        error = error_of(
            outcome,
            name=self._name,
            url=self._store.url,
            latest=checkpoints[-1].name if checkpoints else None,
            max_failures=self._config.failure_config.max_failures,
        )
        metrics = decode_metrics(outcome.metrics) if outcome.metrics is not None else None
        result: Result | None = None
        try:
            result = Result.of_run(
                self._store,
                metrics=metrics,
                error=error,
                return_value=value,
                checkpoint_config=self._config.checkpoint_config,
                checkpoints=checkpoints,
                filesystem=self._filesystem,
            )
        except StorageError:
            if error is None:
                raise
            # What ended the run is told, if need be without what is kept of it.
        if error is None:
            assert result is not None
            if not outcome.has_reported and value is None and not checkpoints:
                self._progress.message(
                    "the function returned without a report and without a value, so nothing of it is kept; call holdfast.report(metrics, "
                    "checkpoint) in it, or give the framework's trainer the report callback"
                )
            self._progress.finished(f"finished; {self._store.url}")
            return result
        if isinstance(error, WorkerGroupError | ControllerError | TrainingInterrupted):
            error.result = result
        # Why the last attempt failed has been said, and the error says it again.
        told = attempts_text(outcome) if isinstance(error, WorkerGroupError) else str(error).splitlines()[0]
        self._progress.finished(f"ended: {told}; {self._store.url}")
        raise error


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
        "resume_from": Origin(trainer.resume_from).place if trainer.resume_from is not None else "",
        **{f"metadata.{key}": str(value) for key, value in trainer.metadata.items()},
    }
