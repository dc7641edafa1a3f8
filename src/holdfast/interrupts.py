"""Ctrl-C and SIGTERM while `fit()` runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from holdfast.errors import TrainingInterrupted
from holdfast.nudge import Nudge

Handler = Callable[[int], None]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """The signals that have asked for the end, and who acts on the next one.

    Attributes:
        signum: The first one's number, or None.
        count: How many there were.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.count = 0
        self._handler: Handler | None = None
        self._own: Callable[[], None] | None = None
        self._nudge: Nudge | None = None

    def hand_to(self, handler: Handler) -> None:
        """From now on this is called with each signal's number; what it raises is raised in the main thread.

        One that came before anybody listened is handed on now.
        """
        earlier = self._handler is None and self.signum is not None
        self._handler = handler
        if earlier and self.signum is not None:
            handler(self.signum)
        elif self.count > 1:
            handler(self.signum or signal.SIGINT)  # who insisted then insists now

    @contextlib.contextmanager
    def raised(self, hurry: Callable[[], None]) -> Iterator[None]:
        """While the block runs a signal ends it where it is, as a KeyboardInterrupt, and so does one that came before.

        For what leaves nothing half done: where there is more to unwind, `hand_to` somebody who knows how.

        Args:
            hurry: Ends what other threads of the block wait for: they are waited for in their turn.
        """

        def interrupt(signum: int) -> None:
            hurry()
            raise KeyboardInterrupt

        try:
            self.hand_to(interrupt)
            yield
        finally:
            self._handler = None

    def interrupt_main_thread(self, action: Callable[[], None]) -> None:
        """Has the main thread call something soon, wherever it waits; for other threads, while signals are handled."""
        self._own = action
        if self._nudge is not None:
            self._nudge.soon()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM for requests while the block runs; earlier handlers come back afterwards.

        Outside the main thread, where Python lets nobody set handlers, the program's own stay in force.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        process = os.getpid()
        earlier: dict[signal.Signals, signal._HANDLER] = {}

        def handler(signum: int, frame: FrameType | None) -> None:
            if os.getpid() == process:
                self._ask(signum)
            else:  # a fork of ours, of the user's making, which would not end otherwise
                signal.signal(signum, _or_default(earlier[signal.Signals(signum)]))
                signal.raise_signal(signum)

        try:
            for signum in _SIGNALS:
                # A shell starts what it puts into the background with `&` so; Ctrl-C is not meant for it.
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    earlier[signum] = signal.signal(signum, handler)
            with Nudge(_SIGNALS, self._nudged) as self._nudge:
                yield
        finally:
            self._nudge = None
            for signum, old in earlier.items():
                signal.signal(signum, _or_default(old))

    def _ask(self, signum: int) -> None:
        self.count += 1
        self.signum = self.signum or signum
        if self._handler is not None:
            self._handler(signum)

    def _nudged(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            own()


def exit_by_signal_where_uncaught() -> None:
    """From now on a `TrainingInterrupted` that ends the script ends it with the status that shells know: 130 for Ctrl-C, 143 for SIGTERM.

    Python gives it to no class but KeyboardInterrupt itself; and a SystemExit, which has a status, would end an interactive session, too.
    """
    if not isinstance(sys.excepthook, _ExitBySignal):
        sys.excepthook = _ExitBySignal(sys.excepthook)


class _ExitBySignal:
    def __init__(self, show: Callable[[type[BaseException], BaseException, TracebackType | None], object]) -> None:
        self._show = show

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        self._show(kind, error, traceback)
        goes_on = hasattr(sys, "ps1") or sys.flags.inspect or sys.flags.interactive
        if isinstance(error, TrainingInterrupted) and not goes_on:
            raise SystemExit(128 + error.signum)


def _or_default(handler: signal._HANDLER) -> signal._HANDLER:
    # None: a handler that was not set from Python, which cannot be set back from it either.
    return handler if handler is not None else signal.SIG_DFL
