"""`num_workers=0`: the function runs in the user's own program, all else as with workers.

The controller's loop runs in a thread; the function runs where `fit()` was called, so that a debugger, a notebook's
Ctrl-C and thread-local state work as in any program.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.controller.group import Engine, Exit, Listener, WorkerGroup
from holdfast.engines.local.files import FileConnections
from holdfast.engines.local.group import Connection
from holdfast.errors import HoldfastError
from holdfast.worker import protocol
from holdfast.worker.channel import Channel
from holdfast.worker.main import Work, execute

if TYPE_CHECKING:
    from holdfast.controller.controller import Controller, Outcome
    from holdfast.controller.reactor import Reactor
    from holdfast.interrupts import StopRequests
    from holdfast.worker.backend import BackendConfig
    from holdfast.worker.shipping import Storage


class InProcessGroup(WorkerGroup):
    """The caller's thread as the only worker."""

    def __init__(self, connection: Connection, files: FileConnections, interrupt: Callable[[], None]) -> None:
        self._connection = connection
        self._files = files
        self._interrupt = interrupt

    def send(self, rank: int, frame: bytes) -> None:
        """Answers the function."""
        self._connection.send(frame)

    def tell(self, rank: int, frame: bytes) -> None:
        """Tells the function's side."""
        self._files.tell(rank, frame)

    def files_closed(self, count: int) -> None:
        """Goes on reading where it was paused."""
        self._files.closed(count)

    def interrupt(self, ranks: Iterable[int]) -> None:
        """For a function that has not come to a call since the end was asked for."""
        if 0 in ranks:
            self._interrupt()

    def kill(self, ranks: Iterable[int] | None = None) -> None:
        """Nothing: it is the user's own program."""

    def dump_stacks(self, ranks: Sequence[int]) -> None:
        """Nothing: no other rank waits."""

    def close(self) -> None:
        """Frees the sockets."""
        self._connection.close()
        self._files.close()


class InProcessEngine(Engine):
    """Hands jobs to the thread that called `fit()`; the function is called as it is, never pickled.

    Attributes:
        value: What the function returned at last.
        is_running: Whether the function is being called: an interrupt may be raised in it.
        interrupt: Raises KeyboardInterrupt in the function.
    """

    def __init__(
        self, function: Callable[..., Any], config: dict[str, Any] | None, backend: BackendConfig, storage: Storage
    ) -> None:
        self.value: Any = None
        self._task = Work(lambda: (function, config, backend), self._keep, storage)
        self._work: queue.SimpleQueue[Callable[[bool], None] | None] = queue.SimpleQueue()
        self._cancelled = False
        self.is_running = False
        self.interrupt: Callable[[], None] = lambda: None

    def prepare(self) -> None:
        """Nothing to prepare."""

    def await_ready(self, reactor: Reactor, stopped: Callable[[], bool]) -> None:
        """Nothing to wait for."""

    def world_size(self) -> int:
        """One."""
        return 1

    def start(self, reactor: Reactor, jobs: Sequence[protocol.Job], listener: Listener) -> WorkerGroup:
        """Queues the function for the thread that called `fit()`."""
        ours, theirs = socket.socketpair()
        connection = Connection(reactor, ours, 0, listener)
        files = FileConnections(reactor, listener, lambda _: connection.drain())
        files_end = files.add(0)
        job = msgspec.structs.replace(jobs[0], local_rank=0, local_world_size=1, node_rank=0)

        def work(run: bool) -> None:
            code = 130
            saved = {name: os.environ.get(name) for name in job.environment}
            os.environ.update(job.environment)
            try:
                self.is_running = run
                if run:
                    code = execute(job, Channel(theirs), files_end, self._task, in_own_process=False)
            finally:
                # From here on a signal raises nothing, so that nothing of this is left out.
                self.is_running = False
                reactor.post(lambda: self._ended(connection, files, listener, code))
                for name, value in saved.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
                theirs.close()
                files_end.close()

        if self._cancelled:
            work(False)
        else:
            self._work.put(work)
        return InProcessGroup(connection, files, self.interrupt)

    def run_work(self) -> None:
        """Runs functions in the calling thread until `close`.

        Raises:
            KeyboardInterrupt: Ctrl-C ended a function.
        """
        while True:
            work = self._work.get()
            if work is None:
                return
            work(True)

    def cancel(self) -> None:
        """The calling thread runs nothing more: what is queued, or comes, ends at once."""
        self._cancelled = True
        with contextlib.suppress(queue.Empty):
            while (work := self._work.get_nowait()) is not None:
                work(False)

    def close(self) -> None:
        """Lets `run_work` return."""
        self._work.put(None)

    def _keep(self, value: Any) -> None:
        """The returned value stays the object that it is."""
        self.value = value

    @staticmethod
    def _ended(connection: Connection, files: FileConnections, listener: Listener, code: int) -> None:
        connection.drain()
        listener.on_exit(0, Exit(code))
        files.drain(0)


def drive_in_thread(controller: Controller, engine: InProcessEngine, stop: StopRequests) -> Outcome:
    """Runs the controller in a thread of its own, and its jobs in the calling one.

    Args:
        stop: What signals ask for, in the main thread.
    """
    outcomes: list[Outcome] = []

    def drive() -> None:
        try:
            outcomes.append(controller.run())
        finally:
            engine.close()

    def interrupt() -> None:
        if engine.is_running:
            raise KeyboardInterrupt

    def on_signal(signum: int) -> None:
        controller.stop_soon(signum)
        if stop.count > 1:
            interrupt()

    if threading.current_thread() is threading.main_thread():
        engine.interrupt = lambda: stop.interrupt_main_thread(interrupt)

    thread = threading.Thread(target=drive, name="holdfast-controller", daemon=True)
    thread.start()
    stop.hand_to(on_signal)
    try:
        engine.run_work()
    except KeyboardInterrupt:
        if not stop.count:  # raised by the function itself
            controller.stop_soon(signal.SIGINT)
        engine.cancel()
    thread.join()
    if not outcomes:
        raise HoldfastError("the driver's loop ended without an outcome; its traceback stands above")
    return outcomes[0]
