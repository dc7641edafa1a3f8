"""Warnings that parts of the package log while a run goes on, in the display where the run's other lines are."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from holdfast.progress.base import Progress
from holdfast.progress.quiet import QuietProgress

_log = logging.getLogger("holdfast")


class _Shown(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._progress.message(self.format(record))
        except Exception:  # noqa: BLE001 - as logging has it: what cannot be logged ends nothing
            self.handleError(record)


@contextlib.contextmanager
def warnings_shown(progress: Progress) -> Iterator[None]:
    """While the block runs, warnings are lines of the display, where a program has no handler of its own for them.

    Left to Python they go to stderr by themselves: through a line that is drawn anew, and without the run's name.
    """
    if isinstance(progress, QuietProgress) or _log.hasHandlers():
        yield
        return
    handler = _Shown(progress)
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
