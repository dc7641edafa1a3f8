"""What a worker knows of itself and its run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from holdfast.checkpoint import Checkpoint, listen
from holdfast.errors import OutsideWorkerError
from holdfast.secrecy import PickledWithoutSecrets
from holdfast.stores import Store
from holdfast.stores.wrapped import without_credentials
from holdfast.worker import protocol
from holdfast.worker.answers import expect
from holdfast.worker.channel import Asked, Channel
from holdfast.worker.pending import Inbox
from holdfast.worker.shipping import Storage, unpack_checkpoint, unpack_storage

if TYPE_CHECKING:
    import socket
    from typing import Any

    from holdfast.worker.protocol import Job


class Closeable(Protocol):
    """What holds something until it is closed."""

    def close(self) -> None:
        """Lets go of it; safe to repeat."""


@dataclass(frozen=True)
class StorageContext(PickledWithoutSecrets):
    """Where the run lies, for code that writes there itself (`checkpoint_upload_fn`, `NO_UPLOAD`).

    Attributes:
        storage_path: The directory or URI of all runs.
        experiment_fs_path: The run's own directory.
        storage_filesystem: The file system object that `RunConfig` was given, if any.
    """

    storage_path: str
    experiment_fs_path: str
    storage_filesystem: Any = None

    def build_checkpoint_path_from_name(self, checkpoint_name: str) -> str:
        """The directory in which the checkpoint of that name belongs."""
        return f"{self.experiment_fs_path}/{checkpoint_name}"

    def _without_secrets(self) -> dict[str, Any]:
        return {**self.__dict__, "storage_filesystem": without_credentials(self.storage_filesystem)}


class TrainContext(PickledWithoutSecrets):
    """Ranks, names and places of this worker."""

    def __init__(self, job: Job, filesystem: Any = None) -> None:
        self._job = job
        self._filesystem = filesystem

    def get_world_rank(self) -> int:
        """This worker's rank among all."""
        return self._job.rank

    def get_world_size(self) -> int:
        """The number of workers."""
        return self._job.world_size

    def get_local_rank(self) -> int:
        """This worker's rank on its node."""
        return self._job.local_rank

    def get_local_world_size(self) -> int:
        """The number of workers on this node."""
        return self._job.local_world_size

    def get_node_rank(self) -> int:
        """The rank of this node."""
        return self._job.node_rank

    def get_experiment_name(self) -> str:
        """The run's name."""
        return self._job.run_name

    def get_storage(self) -> StorageContext:
        """Where the run lies."""
        return StorageContext(self._job.storage_url, self._job.run_url, self._filesystem)

    def _without_secrets(self) -> dict[str, Any]:
        # The methods need what the job is called and which part of it this is, and nothing that it begins with.
        job = msgspec.structs.replace(self._job, payload=b"", environment={}, storage=b"", origin=b"")
        return {"_job": job, "_filesystem": without_credentials(self._filesystem)}


@dataclass
class WorkerState:
    """Everything that `report` and its relatives need; one a worker, gone when the function has ended.

    Attributes:
        files: Where files are handed over open.
        storage: The run's storage, where this is the program that has it; else made from the job.
        inbox: What became of those that were.
        staging: Open staging directories, and whether each was reported.
        saved_into: The directory that holds this rank's part of a state of all ranks, until it is reported.
        saved_files: The files of that part, as paths below the directory.
        resources: What other parts of the package keep as long as the function runs; closed at its end.
        checkpoint: The latest committed checkpoint, the same on every rank at every report; before there is one, the trainer's
            `resume_from`. As far as `unread` does not know better.
        unread: The last report, where it has returned before its answer came.
        ignores_checkpoint: There is a checkpoint to begin with, and the function has neither asked for one nor read one of this run.
    """

    job: Job
    channel: Channel
    files: socket.socket
    storage: Storage | None = None
    inbox: Inbox = field(init=False)
    staging: dict[str, bool] = field(init=False, default_factory=dict)
    staged_bytes: int | None = field(init=False, default=None)
    saved_into: str | None = field(init=False, default=None)
    saved_files: tuple[str, ...] = field(init=False, default=())
    resources: dict[str, Closeable] = field(init=False, default_factory=dict)
    context: TrainContext = field(init=False)
    checkpoint: Checkpoint | None = field(init=False, default=None)
    unread: Asked | None = field(init=False, default=None)
    ignores_checkpoint: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.storage = self.storage or unpack_storage(self.job.storage, self.job.storage_url)
        self.context = TrainContext(self.job, self.storage.filesystem)
        self.inbox = Inbox(self.files, self.committed)
        if self.job.checkpoint is not None:
            self.checkpoint = self.committed(self.job.checkpoint, self.job.kept)
        elif self.job.origin:
            self.checkpoint = unpack_checkpoint(self.job.origin)
        self.ignores_checkpoint = self.checkpoint is not None

    @property
    def next_report(self) -> int:
        """The index that the next call of `report` counts, on every rank alike: one that was refused was made all the same."""
        return self.job.first_report + self.channel.num_reports

    @property
    def run(self) -> Store:
        """The store with the run's directory as its root."""
        assert self.storage is not None
        return self.storage.root.child(self.job.run_name)

    def is_reading(self, path: str) -> None:
        """The function reads the checkpoint at that path, however it came to it."""
        if self.ignores_checkpoint and self.checkpoint is not None and path == self.checkpoint.path:
            self.ignores_checkpoint = False
        elif self.ignores_checkpoint:
            run = self.run
            is_local = run.local_path() is not None
            parent, ours = (os.path.realpath(each) if is_local else each for each in (path.rpartition("/")[0], run.url))
            self.ignores_checkpoint = parent != ours.rstrip("/")

    def take(self, answer: protocol.Answer) -> protocol.Proceed:
        """What a report was answered; by it `checkpoint` moves.

        Raises:
            HoldfastError: The report was refused.
        """
        proceed = expect(answer, protocol.Proceed)
        if proceed.latest is not None:
            self.checkpoint = self.committed(proceed.latest)
        return proceed

    def catch_up(self) -> None:
        """Takes the answer that the last report did not wait for.

        Raises:
            DriverLostError: The driver is gone.
        """
        unread = self.unread
        if unread is not None:
            self.take(self.channel.answer_to(unread))
            self.unread = None

    def committed(self, name: str, kept: Mapping[str, str] | None = None) -> Checkpoint:
        """The checkpoint of that name; the driver vouches for its bytes.

        Args:
            kept: Where this machine has files of it, by path.
        """
        assert self.storage is not None
        return Checkpoint._from_store(
            self.run.child(name), filesystem=self.storage.filesystem, verified=True, kept=kept
        )


_state: WorkerState | None = None


def enter(state: WorkerState) -> None:
    """Makes this process (or, with no workers, this program) the worker that `state` describes."""
    global _state
    _state = state
    listen(state.is_reading)


def leave() -> None:
    """The function has ended; `report` no longer works."""
    global _state
    state, _state = _state, None
    listen(None)
    for resource in state.resources.values() if state is not None else ():
        resource.close()


def is_inside() -> bool:
    """Whether a training function runs in this process."""
    return _state is not None


def current(what: str) -> WorkerState:
    """The worker's state.

    Raises:
        OutsideWorkerError: No training function runs in this process.
    """
    if _state is None:
        raise OutsideWorkerError(
            f"{what} works only inside a training function that a trainer runs; here there is none. "
            "Pass the function that calls it to DataParallelTrainer(...) or TorchTrainer(...) and call fit()"
        )
    return _state


def get_context() -> TrainContext:
    """Ranks, names and places of this worker.

    Raises:
        OutsideWorkerError: Called outside a training function.
    """
    return current("get_context()").context


def get_checkpoint() -> Checkpoint | None:
    """The latest committed checkpoint: what to resume from when the function begins.

    After a report it is the newest that was committed; at every report it is the same on every rank.

    Returns:
        Before anything has been committed in this run, the trainer's `resume_from`, or None.

    Raises:
        OutsideWorkerError: Called outside a training function.
    """
    state = current("get_checkpoint()")
    state.ignores_checkpoint = False
    state.catch_up()
    return state.checkpoint
