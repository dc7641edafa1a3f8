"""Carries reports to a tracker in a thread of its own: the driver never waits for one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from holdfast.tracking.entry import Entry
from holdfast.tracking.tracker import Ending, Tracker

logger = logging.getLogger("holdfast")
_MAX_WAITING = 10_000
_MAX_AT_ONCE = 100


class Sender:
    """One tracker of one `fit()`.

    A failure is told once. What the tracker did not take is left out there and the next reports are tried again, for a server that was
    away may be back; so is opening it.

    Args:
        name: The tracker's, for a person.
        open_tracker: Makes it; called in the thread.
        max_waiting: How many reports may wait; with more, the newest are left out.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], *, max_waiting: int = _MAX_WAITING) -> None:
        self._name = name
        self._open_tracker = open_tracker
        self._max_waiting = max_waiting
        self._waiting: deque[Entry] = deque()
        self._ending: Ending | None = None
        self._changed = threading.Condition()
        self._has_warned = False
        # A daemon: a server that never answers must not keep the script from ending.
        self._thread = threading.Thread(target=self._work, name=f"holdfast-{name}", daemon=True)
        self._thread.start()

    def send(self, entry: Entry) -> None:
        """Takes a report and returns at once."""
        with self._changed:
            is_full = len(self._waiting) >= self._max_waiting
            if not is_full:
                self._waiting.append(entry)
                self._changed.notify()
        if is_full:
            self._warn(f"{self._max_waiting} reports wait for it, and further ones are left out")

    def finish(self, ending: Ending, timeout_s: float) -> None:
        """Waits until everything is there and the tracker closed, for so long at most."""
        with self._changed:
            self._ending = ending
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._warn(f"it had not taken everything after {timeout_s:g} s")

    def _work(self) -> None:
        tracker: Tracker | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending is not None)
                entries = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_AT_ONCE))]
                ending = self._ending
            try:
                if tracker is None and entries:
                    tracker = self._open_tracker()
                if tracker is not None and entries:
                    tracker.log(entries)
                elif tracker is not None and ending is not None:
                    tracker.finish(ending)
            except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on
                self._warn(f"{type(error).__name__}: {error}")
            if not entries and ending is not None:
                return

    def _warn(self, what: str) -> None:
        with self._changed:
            has_warned, self._has_warned = self._has_warned, True
        if not has_warned:
            logger.warning(
                "%s does not have all reports, and is not warned of again; training goes on, and the run itself has all: %s",
                self._name,
                what,
            )
