"""The driver's side of the zygote: starting it, keeping it warm, starting workers through it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence

from holdfast.engines.local import wire
from holdfast.errors import WorkerStartError
from holdfast.persistence.right_of_way import as_usual

logger = logging.getLogger("holdfast")

_BOOT = (
    "import os, sys; sys.path[:] = os.environ.pop('_HOLDFAST_PATH').split(os.pathsep); "
    "from holdfast.engines.local.zygote import main; main(*map(int, sys.argv[1:4]))"
)
_EXIT_S = 5.0

Listener = Callable[[wire.ToDriver | None], None]
# pandas loads pyarrow, where that is there, and its allocator would start a thread, which a fork does not survive.
_ALONE = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}


class Zygote:
    """One zygote process; one engine uses it at a time."""

    def __init__(self) -> None:
        """Starts the process; it is ready some 50 ms later, messages wait for it.

        Raises:
            WorkerStartError: The process cannot be started.
        """
        ours, theirs = socket.socketpair()
        # Its end tells the zygote of ours even while it imports something.
        lifeline, self._lifeline = os.pipe()
        self._connection = ours
        self._requested: set[str] = set()
        self._tokens = 0
        self.can_fork = True
        # Where its own error text goes, should it ever die: not to the user's terminal, which it outlives no driver on.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        arguments = ["-c", _BOOT, str(theirs.fileno()), str(os.getpid()), str(lifeline)]
        search_path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        try:
            with as_usual():  # all workers come from it
                self._process = subprocess.Popen(
                    [sys.executable, *subprocess._args_from_interpreter_flags(), *arguments],  # type: ignore[attr-defined]
                    pass_fds=(theirs.fileno(), lifeline),
                    env=_ALONE | os.environ | {"_HOLDFAST_PATH": search_path},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    start_new_session=True,  # Ctrl-C in the terminal is the driver's
                )
        except OSError as error:
            ours.close()
            os.close(self._lifeline)
            raise WorkerStartError(f"the process that starts workers cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(lifeline)
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._connection.fileno()

    def preload(self, modules: Sequence[str]) -> bool:
        """Has modules imported before the next fork; answers come as messages. False if none is new."""
        new = [name for name in modules if name not in self._requested]
        if not new:
            return False
        self._requested.update(new)
        self._send(wire.Preload(new))
        return True

    def spawn(self, descriptors: tuple[int, int, int, int]) -> int:
        """Starts a worker on copies of its two sockets, stdout and stderr; returns its token."""
        self._tokens += 1
        self._send(wire.Spawn(self._tokens, self.can_fork), descriptors)
        return self._tokens

    def signal(self, token: int, signum: int, *, group: bool) -> None:
        """Sends a signal to a worker if it still runs; to all that it has started too if `group`."""
        with contextlib.suppress(WorkerStartError):  # a zygote that is gone has taken its workers along
            self._send(wire.Signal(token, signum, group))

    def receive(self) -> wire.ToDriver | None:
        """The next message; None once the process is gone."""
        try:
            return wire.receive_in_driver(self._connection)
        except OSError:
            return None

    def last_words(self) -> str:
        """What the process wrote to its stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-2000:]

    def close(self) -> None:
        """Ends the process and every worker it has; safe to repeat."""
        self._connection.close()
        self._let_go()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def kill(self) -> None:
        """Ends the process at once, whatever it is doing."""
        self._process.kill()
        self.close()

    def disown(self) -> None:
        """In a process that the driver forked: forgets the zygote, which is not this process's."""
        with contextlib.suppress(OSError):
            self._connection.close()
            self._let_go()
        self._process.returncode = 0

    def _let_go(self) -> None:
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    def _send(self, message: wire.ZygoteMessage, descriptors: tuple[int, ...] = ()) -> None:
        try:
            wire.send(self._connection, message, descriptors)
        except OSError as error:
            words = self.last_words()
            raise WorkerStartError(
                f"the process that starts workers (pid {self.pid}) is gone: {error}" + (f"\n{words}" if words else "")
            ) from error


_idle: list[Zygote] = []
_all: set[Zygote] = set()
_lock = threading.Lock()


def take() -> Zygote:
    """A warm zygote if one is idle, else a new one."""
    with _lock:
        while _idle:
            zygote = _idle.pop()
            if zygote.alive:
                return zygote
            _all.discard(zygote)
            zygote.close()
        zygote = Zygote()
        _all.add(zygote)
        return zygote


def give_back(zygote: Zygote) -> None:
    """Keeps a zygote warm for the next run of this process."""
    with _lock:
        if zygote.alive and not _idle:
            _idle.append(zygote)
            return
        _all.discard(zygote)
    zygote.close()


def discard(zygote: Zygote) -> None:
    """Ends a zygote at once."""
    with _lock:
        _all.discard(zygote)
    zygote.kill()


def _close_all() -> None:
    with _lock:
        zygotes = list(_all)
        _all.clear()
        _idle.clear()
    for zygote in zygotes:
        zygote.close()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for zygote in _all:
        zygote.disown()
    _all.clear()
    _idle.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
