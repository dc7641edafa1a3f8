"""What a person sees of a run: a live line on a terminal, plain lines in a log, or nothing but warnings."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from holdfast.checks import check_choice
from holdfast.config import PROGRESS_MODES, ScoreOrder
from holdfast.progress.base import Progress as Progress
from holdfast.progress.lines import LineProgress
from holdfast.progress.logged import warnings_shown as warnings_shown
from holdfast.progress.quiet import QuietProgress
from holdfast.progress.status import Status

__all__ = ["Progress", "make_progress", "warnings_shown"]

_VARIABLE = "HOLDFAST_PROGRESS"


def make_progress(
    mode: str,
    run_name: str,
    stream: TextIO | None = None,
    *,
    score_attribute: str | None = None,
    score_order: ScoreOrder = "max",
) -> Progress:
    """The display for one `fit()`.

    Args:
        mode: `live`, `plain`, `quiet`, or `auto`: what HOLDFAST_PROGRESS says, else live on a terminal, else plain.
        stream: Where all of it goes; None for stderr, and stdout for what workers print to theirs.
        score_attribute: The metric to show; without one, the first numbers that are reported.

    Raises:
        ConfigurationError: There is no such mode.
    """
    target = sys.stderr if stream is None else stream
    chosen = _choose(mode, target)
    status = Status(run_name, score_attribute, score_order)
    # A program without a console (pythonw, some services) has no stderr at all.
    if chosen == "quiet" or target is None:
        return QuietProgress(run_name)
    worker_stream = (sys.stdout or target) if stream is None else stream
    if chosen == "live":
        # Rich costs tens of milliseconds to import, which only a terminal has to pay.
        from holdfast.progress.live import LiveProgress

        return LiveProgress(status, target, worker_stream)
    return LineProgress(status, target, worker_stream)


def _choose(mode: str, stream: TextIO | None) -> str:
    what = "RunConfig.progress"
    if mode == "auto" and os.environ.get(_VARIABLE):
        mode, what = os.environ[_VARIABLE].strip().lower(), f"the environment variable {_VARIABLE}"
    check_choice(what, mode, PROGRESS_MODES)
    if mode != "auto":
        return mode
    # CI services give a terminal that is a file in the end, and would keep every redrawing.
    live = _is_terminal(stream) and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")
    return "live" if live else "plain"


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # a closed file
        return False
