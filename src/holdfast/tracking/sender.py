"""Carries reports to a tracker in a thread of its own: the driver never waits for one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice

from holdfast.tracking.entry import Entry
from holdfast.tracking.tracker import Ending, Tracker

logger = logging.getLogger("holdfast")
_MAX_WAITING = 10_000
_MAX_AT_ONCE = 100
# To open a tracker takes seconds where all is well, and more on a busy machine: a database is made, a service started.
_SLOW_S = 30.0
_START_S = 60.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 15.0


class Sender:
    """One tracker of one `fit()`.

    One that is away (it cannot be opened, or raises an OSError) is opened anew after a pause, and gets what it has not taken; after every
    failure in a row the pause is longer. What it refuses by any other exception is left out there. The first trouble is told as soon as it
    is noticed, a call that does not come back among them, and at the end how many reports are not there.

    Args:
        name: The tracker's, for a person.
        open_tracker: Makes it; called in the thread.
        max_waiting: How many reports may wait; with more, the newest are left out.
        slow_s: After how many seconds a call that goes on is told of, at the latest after twice as many.
        first_pause_s: How long the first pause is, seconds.
        start_s: How long the end may wait for the tracker to be opened for the first time.
    """

    def __init__(
        self,
        name: str,
        open_tracker: Callable[[], Tracker],
        *,
        max_waiting: int = _MAX_WAITING,
        slow_s: float = _SLOW_S,
        first_pause_s: float = _FIRST_PAUSE_S,
        start_s: float = _START_S,
    ) -> None:
        self._name = name
        self._open_tracker = open_tracker
        self._max_waiting = max_waiting
        self._slow_s = slow_s
        self._first_pause_s = first_pause_s
        self._start_s = start_s
        self._waiting: deque[Entry] = deque()
        self._num_left_out = 0
        self._ending: Ending | None = None
        self._tracker: Tracker | None = None
        self._is_starting = True
        self._changed = threading.Condition()
        self._trouble: str | None = None
        self._num_calls = 0
        self._is_calling = False
        self._is_over = threading.Event()
        # Daemons: a server that never answers must not keep the script from ending.
        self._thread = threading.Thread(target=self._work, name=f"holdfast-{name}", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, name=f"holdfast-{name}-watch", daemon=True).start()

    def send(self, entry: Entry) -> None:
        """Takes a report and returns at once."""
        with self._changed:
            is_full = len(self._waiting) >= self._max_waiting
            if is_full:
                self._num_left_out += 1
            else:
                self._waiting.append(entry)
                self._changed.notify()
        if is_full:
            self._tell(f"{self._max_waiting} reports wait for it, and further ones are left out")

    def finish(self, ending: Ending, timeout_s: float) -> None:
        """Waits until everything is there and the tracker closed, for so long at most once it has started.

        Who was interrupted does not wait for a start by itself.
        """
        waits_s = timeout_s if ending is Ending.INTERRUPTED else max(self._start_s, timeout_s)
        with self._changed:
            self._ending = ending
            self._changed.notify_all()
            has_started = self._changed.wait_for(lambda: not self._is_starting, waits_s)
        if has_started:
            waits_s = timeout_s
            self._thread.join(timeout_s)
        is_late = self._thread.is_alive()
        with self._changed:
            num_missing, trouble = self._num_left_out + len(self._waiting), self._trouble
            is_open = self._tracker is not None
        if not num_missing and not is_late:
            return
        reasons = [trouble] if trouble else []
        if is_late:
            late = "had not taken everything" if num_missing else "was not closed"
            reasons.insert(0, f"it {late if is_open else 'was still starting'} after {waits_s:g} s")
            reasons.append(
                "if the script ends before it has them, they are missing there for good; the end of fit() waits for as long as "
                f"flush_timeout_s of its callback says, and for a start {self._start_s:g} s"
            )
        logger.warning(
            "%s %s of this fit(), all of which the run itself has: %s",
            self._name,
            f"lacks {num_missing} reports" if num_missing else "may lack reports",
            "; ".join(reasons),
        )

    def _work(self) -> None:
        try:
            self._carry()
        finally:
            self._is_over.set()
            self._started()

    def _carry(self) -> None:
        pause_s = self._first_pause_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending is not None)
                entries = list(islice(self._waiting, _MAX_AT_ONCE))
                ending = self._ending
                self._num_calls += 1
                self._is_calling = True
            is_away = False
            num_refused = 0
            try:
                if self._tracker is None and entries:
                    is_away = True
                    try:
                        self._tracker = self._open_tracker()
                    finally:
                        self._started()
                    is_away = False
                if self._tracker is not None and entries:
                    self._tracker.log(entries)
                elif self._tracker is not None and ending is not None:
                    self._tracker.finish(ending)
            except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on
                is_away = is_away or (isinstance(error, OSError) and bool(entries))
                num_refused = 0 if is_away else len(entries)
                self._tell(f"{type(error).__name__}: {error}")
            with self._changed:
                self._is_calling = False
                if not is_away:
                    for _ in entries:
                        self._waiting.popleft()
                    self._num_left_out += num_refused
                    pause_s = self._first_pause_s
                if ending is not None and (is_away or not entries):
                    return  # what is away at the end stays so
                if is_away:
                    self._tracker = None
                    self._changed.wait_for(lambda: self._ending is not None, pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _started(self) -> None:
        """It is open, or has failed to; what comes later is no start."""
        with self._changed:
            self._is_starting = False
            self._changed.notify_all()

    def _watch(self) -> None:
        """Tells of a call that does not come back, which its own thread cannot."""
        before: int | None = None
        while not self._is_over.wait(self._slow_s):
            with self._changed:
                now = self._num_calls if self._is_calling else None
            if now is not None and now == before:
                self._tell(f"it has not answered for {self._slow_s:g} s; reports wait for it")
                return
            before = now

    def _tell(self, trouble: str) -> None:
        with self._changed:
            is_first = self._trouble is None
            self._trouble = trouble
        if is_first:
            logger.warning(
                "%s does not take reports: %s. It is tried again while training goes on; at the end you are told how many it lacks",
                self._name,
                trouble,
            )
