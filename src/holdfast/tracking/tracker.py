"""What a tracker has to do for `TrackerCallback`."""

from __future__ import annotations

import enum
import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from holdfast.tracking.entry import Entry


class Ending(enum.Enum):
    """How a `fit()` ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Tracker(ABC):
    """One run of an experiment tracker, open for writing. All calls come from one thread, which may wait."""

    @abstractmethod
    def log(self, entries: Sequence[Entry]) -> None:
        """Takes some reports, one or more, in their order.

        Raises:
            OSError: It is away: this tracker is not used any more, and the one that is opened next gets the same reports.
            Exception: It refuses them; they are left out.
        """

    @abstractmethod
    def finish(self, ending: Ending) -> None:
        """Writes what is not written yet and closes; nothing is called after it."""


def import_library(name: str, callback: str, extra: str) -> Any:
    """A tracker's own library.

    Raises:
        ImportError: It is not installed; the text says what to do.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise ImportError(
            f"{callback} needs {extra}. Install it with: pip install holdfast[{extra}]", name=error.name
        ) from error
