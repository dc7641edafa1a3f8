"""The zygote: a program of its own that imports heavy modules once and forks workers from there.

It is a fresh interpreter, never a fork of the driver, and keeps to one thread, so that a fork copies a quiet process.
It ends with its driver, however that dies, and takes every worker along; a worker ends with the zygote.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from holdfast.engines.local import child, wire

# Imported here so that a forked worker finds them: everything that runs before the user's function does.
from holdfast.worker import main as worker_main

__all__ = ["main", "worker_main"]


class _Worker:
    """A worker that has not been reaped, so that its process id is still its own."""

    def __init__(self, token: int, pid: int) -> None:
        self.token = token
        self.pid = pid


class Zygote:
    """Serves one driver over one socket."""

    def __init__(self, connection: socket.socket, driver_pid: int, lifeline: int) -> None:
        self._connection = connection
        self._lifeline = lifeline
        self._driver_pid = driver_pid
        self._workers: dict[int, _Worker] = {}
        self._modules: set[str] = set()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)

    def serve(self) -> None:
        """Runs until the driver is gone."""
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ, "driver")
            selector.register(self._wake_out, selectors.EVENT_READ, "children")
            watch = _watch_process(self._driver_pid)
            if watch is not None:
                # The socket's end is not enough: a process that the driver forked may hold it open.
                selector.register(watch, selectors.EVENT_READ, "driver died")
            while True:
                for key, _ in selector.select():
                    if key.data == "driver died" or (key.data == "driver" and not self._obey()):
                        self._end_all()
                        return
                    if key.data == "children":
                        self._reap()

    def _obey(self) -> bool:
        try:
            received = wire.receive_in_zygote(self._connection)
        except OSError:
            return False
        if received is None:
            return False
        message, descriptors = received
        if isinstance(message, wire.Preload):
            self._preload(message.modules)
        elif isinstance(message, wire.Spawn):
            self._spawn(message, descriptors)
        else:
            self._signal(message)
        return True

    def _preload(self, modules: list[str]) -> None:
        failed = {}
        # Imports make objects that stay; to look for rubbish among them takes a fifth of the whole time.
        gc.disable()
        with _ended_by(self._lifeline):
            for name in modules:
                if name in self._modules:
                    continue
                try:
                    importlib.import_module(name)
                except Exception as error:  # noqa: BLE001 - a broken package must not keep others from being loaded
                    failed[name] = f"{type(error).__name__}: {error}"
                self._modules.add(name)
        # Moves all objects out of the collector's sight: a collection in a worker would touch, and so copy, every page.
        gc.collect()
        gc.freeze()
        gc.enable()
        reason = _why_not_fork()
        self._tell(wire.Preloaded(failed, not reason, reason))

    def _spawn(self, message: wire.Spawn, descriptors: list[int]) -> None:
        try:
            pid = self._fork(descriptors) if message.fork else self._start(descriptors)
        except OSError as error:
            self._tell(wire.NotStarted(message.token, f"{type(error).__name__}: {error}"))
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._workers[pid] = _Worker(message.token, pid)

    def _fork(self, descriptors: list[int]) -> int:
        zygote = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        # The worker. It must never return into the zygote's loop, whatever happens.
        try:
            signal.set_wakeup_fd(-1)
            for own in (self._wake_out, self._wake_in, self._lifeline):
                os.close(own)
            self._connection.close()
            child.become_worker(descriptors, zygote)
        finally:
            os._exit(70)

    def _start(self, descriptors: list[int]) -> int:
        arguments = ["-m", "holdfast.engines.local.child", *map(str, descriptors), str(os.getpid())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(
            [sys.executable, *subprocess._args_from_interpreter_flags(), *arguments],  # type: ignore[attr-defined]
            pass_fds=descriptors,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        process.returncode = 0  # reaped in `_reap`, not by Popen
        return process.pid

    def _signal(self, message: wire.Signal) -> None:
        for worker in self._workers.values():
            if worker.token == message.token:
                _deliver(worker.pid, message.signum, group=message.group)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_out, 4096):
                pass
        for pid, worker in list(self._workers.items()):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            # What the worker started goes with it; while it is not reaped its group's number cannot be another's.
            _deliver(pid, signal.SIGKILL, group=True)
            _, status = os.waitpid(pid, 0)
            del self._workers[pid]
            self._tell(wire.Exited(worker.token, os.waitstatus_to_exitcode(status)))

    def _end_all(self) -> None:
        for pid in self._workers:
            _deliver(pid, signal.SIGKILL, group=True)
        for pid in self._workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _tell(self, message: wire.ZygoteMessage) -> None:
        # A driver that is gone is noticed in `serve`.
        with contextlib.suppress(OSError):
            wire.send(self._connection, message)


def _deliver(pid: int, signum: int, *, group: bool) -> None:
    # PermissionError: macOS says so of a group whose only member is a zombie.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:
            try:
                os.killpg(pid, signum)
            except ProcessLookupError:  # it has not made its own session yet
                os.kill(pid, signum)
        else:
            os.kill(pid, signum)


def _why_not_fork() -> str:
    """Why forked workers would not be safe, or nothing."""
    if sys.platform == "darwin":
        return "macOS's own libraries do not survive a fork"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has initialised CUDA"
    return ""


def _watch_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, where the system has such."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


@contextlib.contextmanager
def _ended_by(lifeline: int) -> Iterator[None]:
    """The driver's end ends this process at once, also in the middle of an import, where it looks at nothing."""
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    if hasattr(os, "O_ASYNC"):
        # SIGIO comes when the pipe's other end closes, and ends a process that does not handle it.
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
        if select.select([lifeline], [], [], 0)[0]:  # it died before the line above
            os._exit(0)
    try:
        yield
    finally:
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags)


def main(descriptor: int, driver_pid: int, lifeline: int) -> None:
    """Runs the zygote on an inherited socket.

    Args:
        lifeline: The end of a pipe that the driver alone holds the other end of.
    """
    # Ctrl-C and a closed terminal are the driver's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # One that is for a worker which has hardly begun waits until that one can see to it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    # It would end a worker that has hardly begun: for that one it comes too early, and does nothing.
    signal.signal(child.STACKS_SIGNAL, signal.SIG_IGN)
    try:
        Zygote(socket.socket(fileno=descriptor), driver_pid, lifeline).serve()
    finally:
        os._exit(0)
