"""What the controller asks of an engine: one life of a group of workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from holdfast.controller.reactor import Reactor
from holdfast.worker import protocol


@dataclass(frozen=True)
class Exit:
    """How a worker process ended.

    Attributes:
        code: Its exit code, or minus the signal's number.
        detail: More for a person (out of memory, last lines of output), may be empty.
        is_lost: It ended with the process that had started it, whatever it was doing.
    """

    code: int
    detail: str = ""
    is_lost: bool = False


@dataclass(frozen=True)
class Listener:
    """Where a group tells what happens; always called in the reactor's thread.

    Attributes:
        on_message: A worker asks.
        on_exit: A worker's process has ended; no message of it follows.
        on_files: A worker hands over open files (rank, message, descriptors, which the listener closes). What it had handed over may
            follow its exit; that it was the last, or that the rest is lost, is told as `Abandoned` with the index -1.
    """

    on_message: Callable[[int, protocol.Question], None]
    on_exit: Callable[[int, Exit], None]
    on_files: Callable[[int, protocol.Files | protocol.Abandoned, list[int]], None]


class WorkerGroup(ABC):
    """Running workers, by rank."""

    @abstractmethod
    def send(self, rank: int, frame: bytes) -> None:
        """Sends a framed message; a worker that is gone is no error."""

    @abstractmethod
    def tell(self, rank: int, frame: bytes) -> None:
        """Sends a frame that answers no question; a worker that is gone is no error."""

    @abstractmethod
    def files_closed(self, count: int) -> None:
        """So many of the descriptors that `on_files` brought are closed: there is room for others."""

    @abstractmethod
    def interrupt(self, ranks: Iterable[int]) -> None:
        """Raises KeyboardInterrupt in these workers where they still run."""

    @abstractmethod
    def kill(self, ranks: Iterable[int] | None = None) -> None:
        """Ends these workers, by default all, where they still run, and what they have started, at once."""

    @abstractmethod
    def dump_stacks(self, ranks: Sequence[int]) -> None:
        """Has these workers write the stacks of their threads to their output."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the group held; every worker has ended."""


class Engine(ABC):
    """Starts groups of workers, one after another."""

    @abstractmethod
    def prepare(self) -> None:
        """Begins whatever a first start needs and returns without waiting for it."""

    @abstractmethod
    def await_ready(self, reactor: Reactor, stopped: Callable[[], bool]) -> None:
        """Waits for what `prepare` has begun, running the loop; returns early once `stopped` says so.

        Raises:
            WorkerStartError: It has failed.
        """

    @abstractmethod
    def world_size(self) -> int:
        """How many workers the next group will have.

        Raises:
            ResourceError: This place cannot hold them.
        """

    @abstractmethod
    def start(self, reactor: Reactor, jobs: Sequence[protocol.Job], listener: Listener) -> WorkerGroup:
        """Starts a group.

        Args:
            jobs: One a rank, without what only the engine knows: environment, search path, local and node ranks.

        Raises:
            WorkerStartError: They cannot be started.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees what outlives a group."""
