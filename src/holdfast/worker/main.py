"""What a worker process does: take a job, run the function, say how it ended."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle

from holdfast.errors import DriverLostError
from holdfast.secrecy import private_channel
from holdfast.signatures import takes_config
from holdfast.worker import context, protocol, script
from holdfast.worker.channel import Channel
from holdfast.worker.shipping import Storage

if TYPE_CHECKING:
    from holdfast.worker.backend import BackendConfig

# Functions of ours that a reader of a worker's traceback does not want to see.
_OWN_FILE = __file__


def call_with_config(function: Callable[..., Any], config: dict[str, Any] | None) -> Any:
    """Calls a training function with its config if it takes one, as the trainer's users write both forms."""
    takes = takes_config(function, "train_loop_per_worker")
    if takes is None:
        takes = config is not None
    return function(config if config is not None else {}) if takes else function()


def run_job(connection: socket.socket, files: socket.socket) -> int:
    """Runs one job from the first message to the last, in a process made for it.

    Args:
        connection: To the controller.
        files: To the node, for files that are handed over open.

    Returns:
        The exit code: 0 if the function returned, 1 if it raised.
    """
    channel = Channel(connection)
    try:
        job = channel.receive()
    except DriverLostError:
        return 1
    if not isinstance(job, protocol.Job):
        return 1
    _settle(job)
    script.stand_for(job.payload)
    work = Work(lambda: cloudpickle.loads(job.payload), _pickled)
    return execute(job, channel, files, work, in_own_process=True)


def _settle(job: protocol.Job) -> None:
    """Makes this process look as if the user had started the script here."""
    os.environ.clear()
    os.environ.update(job.environment)
    tempfile.tempdir = None  # found by another environment, where it was
    sys.path[:] = job.search_path
    sys.argv[:] = job.argv
    with contextlib.suppress(OSError):  # the driver's directory may have been removed since
        os.chdir(job.directory)
    # Forked workers would all continue the zygote's random stream; a fresh process draws its own seed.
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


@dataclass(frozen=True)
class Work:
    """What to run, and what to do with its value.

    Attributes:
        load: Gives the function, its config and the backend.
        deliver: Takes the returned value; gives what travels to the controller.
        storage: The objects themselves, where the function runs in the program that has them.
    """

    load: Callable[[], tuple[Callable[..., Any], dict[str, Any] | None, BackendConfig]]
    deliver: Callable[[Any], bytes | None]
    storage: Storage | None = None


def execute(job: protocol.Job, channel: Channel, files: socket.socket, work: Work, *, in_own_process: bool) -> int:
    """Runs the job's function and reports its end to the controller.

    Args:
        in_own_process: False where the function runs in the user's own program, which Ctrl-C must still reach.
    """
    try:
        # Here already, for it makes objects of the user's: a file system that this process cannot import, say.
        state = context.WorkerState(job, channel, files, work.storage)
        context.enter(state)
        value = _run(work, state)
    except DriverLostError:
        return 1
    except BaseException as error:  # noqa: BLE001 - it travels to the driver
        interrupt = isinstance(error, KeyboardInterrupt) and not in_own_process
        _unwound(in_own_process)
        ending: protocol.Message = _failure(error, interrupted=interrupt)
        code = 1
    else:
        _unwound(in_own_process)
        ending, code, interrupt = protocol.Finished(work.deliver(value)), 0, False
    finally:
        context.leave()
    _flush()
    with contextlib.suppress(DriverLostError):
        channel.send(ending)
    if interrupt:
        raise KeyboardInterrupt  # the user's own, in the user's own program
    return code


def _unwound(in_own_process: bool) -> None:
    """The user's code has ended: an interrupt could only tear exit handlers apart."""
    if in_own_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(work: Work, state: context.WorkerState) -> Any:
    function, config, backend = work.load()
    try:
        backend.on_start(state.context)
        return call_with_config(function, config)
    finally:
        backend.on_end(state.context)


def _pickled(value: object) -> bytes | None:
    if value is None:
        return None
    try:
        with private_channel():
            data: bytes = cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - a user's object may raise anything
        sys.stderr.write(f"holdfast: the function's return value is dropped, it cannot be pickled: {error}\n")
        return None
    return data


def _failure(error: BaseException, *, interrupted: bool) -> protocol.Failed:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == _OWN_FILE:
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    summary = "".join(traceback.format_exception_only(error)).strip()
    try:
        data = cloudpickle.dumps(error.with_traceback(None))
    except Exception:  # noqa: BLE001 - it holds a lock, a socket, …: its text must do
        data = None
    return protocol.Failed(data, summary, text, interrupted)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
