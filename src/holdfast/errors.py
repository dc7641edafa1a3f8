"""Every error that Holdfast raises.

The tree::

    HoldfastError
    ├── ConfigurationError (ValueError)      a configuration that cannot work, refused as soon as it is seen
    │   ├── ResourceError                    not the GPUs or memory that were asked for
    │   ├── SerializationError               the training function or its config cannot travel to a worker
    │   └── StateError                       a state that cannot be saved, or does not fit what was saved
    ├── ReportError                          a call of `report` that cannot be honoured
    │   ├── MetricsError (TypeError)         a metric that is no JSON value, or a score that is no number
    │   ├── CheckpointSourceError (ValueError)  the reported directory is missing, a file, or holds what cannot be stored
    │   ├── CheckpointExistsError            the checkpoint's name is taken
    │   ├── EmptyCheckpointError             no rank reported a single file
    │   ├── ShardCollisionError              two ranks reported one name with different bytes
    │   ├── ShardModifiedError               a file changed while it was being stored
    │   └── UnevenCallsError                 ranks called `report` or a collective unequally often, or in another order
    ├── OutsideWorkerError (RuntimeError)    a function that only works inside a worker was called elsewhere
    ├── StorageError                         the store failed; `kind` says how
    │   ├── StoreNotFoundError               no such key
    │   ├── StoreExistsError                 the key was there already
    │   ├── StorageAccessError               no such bucket, no right, wrong credentials or region
    │   ├── StorageUnavailableError          it does not answer, or is too busy; this may pass by itself
    │   └── StorageInterruptedError          it had not answered when the run was to end at once
    ├── DamagedCheckpointError               stored bytes are not those that were reported
    ├── RunInUseError                        another live driver holds the run
    ├── RunNotFoundError                     no run lies at that path
    ├── FormatError                          a record in storage cannot be read
    ├── WaitTimeoutError (TimeoutError)      a wait ran into its limit
    ├── WorkerDiedError                      a worker process ended without a word (signal, exit code)
    ├── WorkerStartError                     a worker or the zygote could not be started
    └── TrainingFailedError                  `fit()` gave up; carries `result`
        ├── WorkerGroupError                 … because of `worker_failures`
        ├── ControllerError                  … because of `controller_failure`
        └── PreemptionError                  … because nodes were taken away too often

    TrainingInterrupted (KeyboardInterrupt)  Ctrl-C or SIGTERM ended `fit()`; carries `result`

`TrainingInterrupted` stands outside on purpose: code that retries on `Exception` must not swallow Ctrl-C.
Every class has a stable `kind` for programs to act on; texts may change, kinds do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from holdfast.result import Result


class HoldfastError(Exception):
    """The root of everything that Holdfast raises on purpose."""

    kind: ClassVar[str] = "holdfast"


class ConfigurationError(HoldfastError, ValueError):
    """A configuration that cannot work."""

    kind = "configuration"


class ResourceError(ConfigurationError):
    """The machine does not have what was asked for."""

    kind = "resources"


class SerializationError(ConfigurationError):
    """The training function, or its config, cannot be sent to a worker."""

    kind = "serialization"


class StateError(ConfigurationError):
    """A state that cannot be saved, or that does not fit the one in the checkpoint; the text names the key."""

    kind = "state"


class ReportError(HoldfastError):
    """A call of `report` that cannot be honoured."""

    kind = "report"


class MetricsError(ReportError, TypeError):
    """A metric that cannot be stored; the text names its key."""

    kind = "metrics"


class CheckpointSourceError(ReportError, ValueError):
    """The directory handed to `report` cannot be stored; the text names the path."""

    kind = "checkpoint-source"


class CheckpointExistsError(ReportError):
    """A checkpoint of that name exists in the run."""

    kind = "checkpoint-exists"


class EmptyCheckpointError(ReportError):
    """A checkpoint without a file."""

    kind = "empty-checkpoint"


class ShardCollisionError(ReportError):
    """Two ranks reported different bytes under one name."""

    kind = "shard-collision"


class ShardModifiedError(ReportError):
    """A file changed after it was handed over and before it was stored."""

    kind = "shard-modified"


class UnevenCallsError(ReportError):
    """Ranks do not make the same calls."""

    kind = "uneven-calls"


class OutsideWorkerError(HoldfastError, RuntimeError):
    """Called outside a worker's training function."""

    kind = "outside-worker"


class StorageError(HoldfastError):
    """A store failed.

    Attributes:
        may_pass: Whether the same call may succeed later with nothing changed. Where an `OSError` is the cause, that
            one's number says it instead.
    """

    kind = "storage"
    may_pass: ClassVar[bool] = False


class StoreNotFoundError(StorageError):
    """No such key in the store."""

    kind = "not-found"


class StoreExistsError(StorageError):
    """The key exists, and was to be created."""

    kind = "exists"


class StorageAccessError(StorageError):
    """The store refuses: there is no such bucket, or the credentials, rights or region are wrong."""

    kind = "storage-access"


class StorageUnavailableError(StorageError):
    """The store does not answer, or is too busy; the same call may succeed later."""

    kind = "storage-unavailable"
    may_pass = True


class StorageInterruptedError(StorageError):
    """The run was to end at once, and the store had not answered: what was asked of it may have happened, or happen yet."""

    kind = "storage-interrupted"


class DamagedCheckpointError(HoldfastError):
    """Stored bytes differ from what was reported; the text names the file."""

    kind = "damaged"


class RunInUseError(HoldfastError):
    """A live driver holds the run."""

    kind = "run-in-use"


class RunNotFoundError(HoldfastError):
    """No run lies at the path."""

    kind = "run-not-found"


class FormatError(HoldfastError):
    """A record in storage cannot be read."""

    kind = "format"


class WaitTimeoutError(HoldfastError, TimeoutError):
    """A wait ran into its limit; the text says what it waited for."""

    kind = "timeout"


class DriverLostError(HoldfastError):
    """The driver of this worker is gone, and with it whoever could answer."""

    kind = "driver-lost"


class WorkerDiedError(HoldfastError):
    """A worker process ended without reporting an exception."""

    kind = "worker-died"


class WorkerStartError(HoldfastError):
    """A worker could not be started."""

    kind = "worker-start"


class TrainingFailedError(HoldfastError):
    """`fit()` gave up.

    Attributes:
        result: The `Result` so far: what was committed is still there.
    """

    kind = "training-failed"

    def __init__(self, message: str, *, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> Any:
        return _reduced(self)


class WorkerGroupError(TrainingFailedError):
    """Workers failed more often than `FailureConfig.max_failures` allows.

    Attributes:
        worker_failures: The last attempt's exceptions by rank, with the workers' own tracebacks as notes.
    """

    kind = "worker-group"

    def __init__(
        self, message: str, worker_failures: dict[int, BaseException], *, result: Result | None = None
    ) -> None:
        super().__init__(message, result=result)
        self.worker_failures = worker_failures


class ControllerError(TrainingFailedError):
    """The driver's own side failed (storage, starting workers).

    Attributes:
        controller_failure: What it failed of.
    """

    kind = "controller"

    def __init__(self, message: str, controller_failure: BaseException, *, result: Result | None = None) -> None:
        super().__init__(message, result=result)
        self.controller_failure = controller_failure


class PreemptionError(TrainingFailedError):
    """Nodes were taken away more often than `FailureConfig.max_preemption_failures` allows."""

    kind = "preemption"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended `fit()`.

    Attributes:
        result: The `Result` so far, or None if the run had not begun.
        signum: The signal's number.
    """

    kind: ClassVar[str] = "interrupted"

    def __init__(self, message: str, signum: int, *, result: Result | None = None) -> None:
        super().__init__(message)
        self.signum = signum
        self.result = result

    def __reduce__(self) -> Any:
        return _reduced(self)


def _reduced(error: BaseException) -> Any:
    """How it is pickled: by itself an exception is made anew with its text alone."""
    return _made_again, (type(error), error.args), error.__dict__


def _made_again(kind: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    return kind.__new__(kind, *arguments)


def error_classes() -> dict[str, type[BaseException]]:
    """Every class of the tree by its `kind`, so that an error can cross a process boundary by name."""
    found: dict[str, type[BaseException]] = {TrainingInterrupted.kind: TrainingInterrupted}
    todo: list[type[Any]] = [HoldfastError]
    while todo:
        cls = todo.pop()
        found[cls.kind] = cls
        todo.extend(cls.__subclasses__())
    return found
