"""Turns the ends of workers into errors that say what happened."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Mapping

import cloudpickle

from holdfast.controller.group import Exit
from holdfast.controller.meetings import ranks_text
from holdfast.errors import HoldfastError, WorkerDiedError
from holdfast.worker import protocol

# How much of an error is told where another rank's stands before it.
_FOLLOWING_CHARACTERS = 100


class WorkerError(HoldfastError):
    """A worker's exception that could not be unpickled here; its text and traceback are all there is."""

    kind = "worker-error"


def from_failed(rank: int, failed: protocol.Failed) -> BaseException:
    """The worker's own exception, with its traceback as a note; what it says is not said by the note again."""
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
    stack = failed.traceback.removesuffix("".join(traceback.format_exception_only(error)))
    error.add_note(f"on rank {rank}:\n{stack.rstrip()}")
    return error


def in_full(error: BaseException) -> str:
    """All that is known of an error, as Python shows it where it ends a program."""
    return "".join(traceback.format_exception(error))


def from_exit(rank: int, ended: Exit) -> WorkerDiedError:
    """The error for a worker that ended without a word."""
    if ended.code < 0:
        what = f"rank {rank} was killed by {signal_name(-ended.code)}"
    else:
        what = f"rank {rank} exited with code {ended.code} before its function returned"
    return WorkerDiedError(what + (f" ({ended.detail})" if ended.detail else ""))


def signal_name(signum: int) -> str:
    """A signal as a person knows it."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def summarise(failures: Mapping[int, BaseException]) -> str:
    """The first line of each error: first of the ranks that died, which the errors of others mostly follow from.

    What several ranks say alike is said once.
    """
    said: dict[str, list[int]] = {}
    for rank, error in sorted(failures.items(), key=lambda item: (not isinstance(item[1], WorkerDiedError), item[0])):
        text = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, WorkerDiedError):
            text = f"{type(error).__name__}: {text}"
        said.setdefault(text, []).append(rank)
    lines = []
    for text, ranks in said.items():
        if isinstance(failures[ranks[0]], WorkerDiedError):
            lines.append(text)
            continue
        if lines and len(text) > _FOLLOWING_CHARACTERS:
            text = f"{text[:_FOLLOWING_CHARACTERS]}…"
        lines.append(f"{ranks_text(ranks)}: {text}")
    return "; ".join(lines)
