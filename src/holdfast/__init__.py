"""Holdfast keeps the progress of training jobs: whatever dies, the job comes back where it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from holdfast import collective as collective
from holdfast.checkpoint import Checkpoint as Checkpoint
from holdfast.config import CheckpointConfig as CheckpointConfig
from holdfast.config import CheckpointConsistencyMode as CheckpointConsistencyMode
from holdfast.config import CheckpointUploadMode as CheckpointUploadMode
from holdfast.config import FailureConfig as FailureConfig
from holdfast.config import RunConfig as RunConfig
from holdfast.config import ScalingConfig as ScalingConfig
from holdfast.config import ValidationConfig as ValidationConfig
from holdfast.config import ValidationTaskConfig as ValidationTaskConfig
from holdfast.controller.callbacks import RunContext as RunContext
from holdfast.controller.callbacks import UserCallback as UserCallback
from holdfast.errors import CheckpointExistsError as CheckpointExistsError
from holdfast.errors import CheckpointSourceError as CheckpointSourceError
from holdfast.errors import ConfigurationError as ConfigurationError
from holdfast.errors import ControllerError as ControllerError
from holdfast.errors import DamagedCheckpointError as DamagedCheckpointError
from holdfast.errors import DriverLostError as DriverLostError
from holdfast.errors import EmptyCheckpointError as EmptyCheckpointError
from holdfast.errors import FormatError as FormatError
from holdfast.errors import HoldfastError as HoldfastError
from holdfast.errors import MetricsError as MetricsError
from holdfast.errors import OutsideWorkerError as OutsideWorkerError
from holdfast.errors import PreemptionError as PreemptionError
from holdfast.errors import ReportError as ReportError
from holdfast.errors import ResourceError as ResourceError
from holdfast.errors import RunInUseError as RunInUseError
from holdfast.errors import RunNotFoundError as RunNotFoundError
from holdfast.errors import SerializationError as SerializationError
from holdfast.errors import ShardCollisionError as ShardCollisionError
from holdfast.errors import ShardModifiedError as ShardModifiedError
from holdfast.errors import StateError as StateError
from holdfast.errors import StorageAccessError as StorageAccessError
from holdfast.errors import StorageError as StorageError
from holdfast.errors import StorageInterruptedError as StorageInterruptedError
from holdfast.errors import StorageUnavailableError as StorageUnavailableError
from holdfast.errors import StoreExistsError as StoreExistsError
from holdfast.errors import StoreNotFoundError as StoreNotFoundError
from holdfast.errors import TrainingFailedError as TrainingFailedError
from holdfast.errors import TrainingInterrupted as TrainingInterrupted
from holdfast.errors import UnevenCallsError as UnevenCallsError
from holdfast.errors import WaitTimeoutError as WaitTimeoutError
from holdfast.errors import WorkerDiedError as WorkerDiedError
from holdfast.errors import WorkerGroupError as WorkerGroupError
from holdfast.errors import WorkerStartError as WorkerStartError
from holdfast.former import no_such_name
from holdfast.reported import CheckpointStatus as CheckpointStatus
from holdfast.reported import ReportedCheckpoint as ReportedCheckpoint
from holdfast.result import Result as Result
from holdfast.run import Run as Run
from holdfast.trainer import DataParallelTrainer as DataParallelTrainer
from holdfast.worker.backend import BackendConfig as BackendConfig
from holdfast.worker.context import StorageContext as StorageContext
from holdfast.worker.context import TrainContext as TrainContext
from holdfast.worker.context import get_checkpoint as get_checkpoint
from holdfast.worker.context import get_context as get_context
from holdfast.worker.pending import PendingCheckpoint as PendingCheckpoint
from holdfast.worker.preemption import PreemptionInfo as PreemptionInfo
from holdfast.worker.preemption import get_preemption_info as get_preemption_info
from holdfast.worker.report import get_all_reported_checkpoints as get_all_reported_checkpoints
from holdfast.worker.report import report as report
from holdfast.worker.staging_directory import staging_directory as staging_directory

__version__ = "0.1.0"


if not TYPE_CHECKING:  # which would take any name for there

    def __getattr__(name: str) -> NoReturn:
        raise no_such_name(__name__, name)
