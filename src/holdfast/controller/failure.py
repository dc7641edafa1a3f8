"""Turns the ends of workers into errors that say what happened."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Mapping

from holdfast.controller.group import Exit
from holdfast.controller.meetings import ranks_text
from holdfast.errors import ConfigurationError, HoldfastError, MetricsError, WorkerDiedError
from holdfast.worker import protocol, returned

# How much of an error is told where another rank's stands before it.
_FOLLOWING_CHARACTERS = 100
# `[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] `
_SOURCE = re.compile(r"\A\[[^]\s]+\.\w+:\d+\]\s*")
_OPENING = (":", "{", "[", "(")
# `module.Type: text` of an error that is known to come from a collective: others talk to stores and databases, which are no ranks. gloo's
# and TensorFlow's come as errors of any type.
_COLLECTIVE = re.compile(
    r"(?s)\A(torch\.distributed\.Dist\w*Error: |lightgbm\.basic\.LightGBMError: Socket |xgboost\.core\.XGBoostError: .*/src/collective/)"
    r"|\Aholdfast\.errors\.WorkerStartError: .*could not join|/gloo/[^]\s]+\.\w+:\d+\]|\bNCCL error\b|\bCollective ops is aborted\b"
)
# As they say it when the process at the other end is gone.
_LOST = re.compile(
    r"(?i)connection (was likely )?(closed|reset|refused|aborted|lost)|broken pipe|socket closed|remote process exited|ncclRemoteError"
)
# What mostly tells of a mistake in the program. Their subclasses tell of a machine too, or of what was saved.
_MISTAKES = (ConfigurationError, MetricsError)


def _has_lost(error: BaseException) -> bool:
    kind = "" if isinstance(error, WorkerError) else f"{type(error).__module__}.{type(error).__qualname__}: "
    text = f"{kind}{error}"
    return _COLLECTIVE.search(text) is not None and _LOST.search(text) is not None


class WorkerError(HoldfastError):
    """A worker's exception that could not be unpickled here; its text and traceback are all there is."""

    kind = "worker-error"


def from_failed(rank: int, failed: protocol.Failed) -> BaseException:
    """The worker's own exception, with its traceback as a note; what it says is not said by the note again."""
    error: BaseException | None = None
    if failed.exception is not None:
        try:
            loaded = returned.load(failed.exception)
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


def by_cause(failures: Mapping[int, BaseException]) -> list[int]:
    """The ranks, those first whose failures the others' mostly follow from.

    Who died comes first, unless another had failed before it; then those that failed of something, and those that say no more than that a
    connection to another ended. What ended a process after that (a watchdog of its collectives) comes last.

    Args:
        failures: In the order in which they were heard of. Of a death others may be heard of before, but as of a lost connection.
    """
    died_first, others_failed = set(), False
    for rank, error in failures.items():
        if isinstance(error, WorkerDiedError):
            died_first |= set() if others_failed else {rank}
        else:
            others_failed |= not _has_lost(error)

    def order(rank: int) -> tuple[int, int]:
        error = failures[rank]
        if isinstance(error, WorkerDiedError):
            return 0 if rank in died_first else 3, rank
        return 2 if _has_lost(error) else 1, rank

    return sorted(failures, key=order)


def mistakes_in(failures: Mapping[int, BaseException]) -> frozenset[str]:
    """What is said of mistakes in the program, where all that failed, connections to others left aside, tells of one; else nothing."""
    causes = [error for error in failures.values() if not _has_lost(error)]
    if any(type(error) not in _MISTAKES for error in causes):
        return frozenset()
    return frozenset(map(str, causes))


def summarise(failures: Mapping[int, BaseException]) -> str:
    """The headline of each error, by cause. What several ranks say alike is said once, and so is a lost connection."""
    said: dict[str, list[int]] = {}
    lost: list[int] = []
    follows = not all(_has_lost(error) for error in failures.values())
    for rank in by_cause(failures):
        error = failures[rank]
        if isinstance(error, WorkerDiedError):
            said[_headline(error)] = []  # it names its rank
        elif follows and _has_lost(error):
            lost.append(rank)
        else:
            said.setdefault(f"{type(error).__name__}: {_headline(error)}", []).append(rank)
    lines: list[str] = []
    for text, ranks in said.items():
        shown = _shortened(text) if lines else text
        lines.append(f"{ranks_text(ranks)}: {shown}" if ranks else shown)
    if lost:
        error = failures[lost[0]]
        theirs = "its connection" if len(lost) == 1 else "their connections"
        lines.append(
            f"{ranks_text(lost)} then lost {theirs} ({_shortened(f'{type(error).__name__}: {_headline(error)}')})"
        )
    return "; ".join(lines)


def _headline(error: BaseException) -> str:
    """The first line of what an error says, without the place in its library's own source.

    One that opens something (the value that is wrong, a list) says only half: what is wrong with it stands in the last line.
    """
    lines = _SOURCE.sub("", str(error).strip()).split("\n")
    first, last = lines[0].rstrip(), lines[-1].strip()
    return f"{first} … {last}" if len(lines) > 1 and first.endswith(_OPENING) else first


def _shortened(text: str) -> str:
    return text if len(text) <= _FOLLOWING_CHARACTERS else f"{text[:_FOLLOWING_CHARACTERS]}…"
