"""Turns the ends of workers into errors that say what happened."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import cloudpickle

from holdfast.controller.group import Exit
from holdfast.errors import HoldfastError, WorkerDiedError
from holdfast.worker import protocol


class WorkerError(HoldfastError):
    """A worker's exception that could not be unpickled here; its text and traceback are all there is."""

    kind = "worker-error"


def from_failed(rank: int, failed: protocol.Failed) -> BaseException:
    """The worker's own exception, with its traceback as a note."""
    error: BaseException | None = None
    if failed.exception is not None:
        try:
            loaded = cloudpickle.loads(failed.exception)
        except Exception as cause:  # noqa: BLE001 - a user's class may do anything when it is unpickled
            error = WorkerError(f"{failed.summary} (the exception itself cannot be shown here: {cause})")
        else:
            error = loaded if isinstance(loaded, BaseException) else None
    if error is None:
        error = WorkerError(failed.summary)
    error.add_note(f"on rank {rank}:\n{failed.traceback}")
    return error


def from_exit(rank: int, ended: Exit) -> WorkerDiedError:
    """The error for a worker that ended without a word."""
    if ended.code < 0:
        try:
            name = signal.Signals(-ended.code).name
        except ValueError:
            name = f"signal {-ended.code}"
        what = f"rank {rank} was killed by {name}"
    else:
        what = f"rank {rank} exited with code {ended.code} before its function returned"
    return WorkerDiedError(what + (f" ({ended.detail})" if ended.detail else ""))


def summarise(failures: Mapping[int, BaseException]) -> str:
    """One line a rank, the first line of each error, lowest rank first."""
    lines = []
    for rank, error in sorted(failures.items()):
        text = str(error).splitlines()[0] if str(error) else ""
        named = text if isinstance(error, WorkerDiedError) else f"rank {rank}: {type(error).__name__}: {text}"
        lines.append(named)
    return "; ".join(lines)
