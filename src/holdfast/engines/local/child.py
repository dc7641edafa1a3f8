"""The first moments and the last ones of a worker process, forked or fresh."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading

from holdfast.nudge import NUDGE

# The signal by which the driver asks for stacks: none that a scheduler or a framework uses.
STACKS_SIGNAL = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2

_PR_SET_PDEATHSIG = 1


def become_worker(descriptors: list[int], zygote_pid: int) -> None:
    """Makes this process a worker, runs its job, and ends it. Never returns.

    Args:
        descriptors: The sockets to the controller and for open files, and where stdout and stderr go.
        zygote_pid: The parent; should it be gone already, so is the driver.
    """
    code = 70
    try:
        _detach(zygote_pid)
        _connect_output(descriptors[2], descriptors[3])
        connection, files = socket.socket(fileno=descriptors[0]), socket.socket(fileno=descriptors[1])
        from holdfast.worker.main import run_job

        code = run_job(connection, files)
        _say_goodbye()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        # Before it could say anything, or after: whoever waits for it is to see a signal, and no code of a program's own.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - the last frame of this process
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not a normal exit: what the zygote's interpreter would tear down is shared with it.
        os._exit(code)


def _detach(zygote_pid: int) -> None:
    # A session of its own: Ctrl-C in the terminal goes to the driver alone, and one signal reaches all that the
    # worker starts.
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != zygote_pid:  # it died before the line above
            os._exit(70)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGHUP, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    # The driver sends it after an interrupt; it does nothing but end a wait.
    signal.signal(NUDGE, lambda *_: None)
    # The zygote blocks them; one that has come is raised here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _connect_output(stdout: int, stderr: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
    for descriptor in (nothing, stdout, stderr):
        if descriptor > 2:
            os.close(descriptor)
    # New objects: the inherited ones may hold text of the zygote, and a person reads along line by line.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    faulthandler.enable(file=2)
    faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)


def _say_goodbye() -> None:
    """What an interpreter does at its end and users rely on: threads are joined, exit handlers run."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


if __name__ == "__main__":
    become_worker([int(text) for text in sys.argv[1:5]], int(sys.argv[5]))
