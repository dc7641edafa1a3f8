"""Ctrl-C and SIGTERM while `fit()` runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

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
        """Has the main thread call something soon, wherever it waits; by a signal, which counts as nobody's request."""
        self._own = action
        ident = threading.main_thread().ident
        if ident is not None:
            signal.pthread_kill(ident, signal.SIGINT)

    def ask(self, signum: int) -> None:
        """A signal has come."""
        own, self._own = self._own, None
        if own is not None and signum == signal.SIGINT:
            own()
            return
        self.count += 1
        self.signum = self.signum or signum
        if self._handler is not None:
            self._handler(signum)


@contextlib.contextmanager
def handle_interrupts(stop: Callable[[int], None]) -> Iterator[None]:
    """Sends SIGINT and SIGTERM to `stop` while the block runs; earlier handlers come back afterwards.

    Outside the main thread, where Python lets nobody set handlers, the program's own stay in force.

    Args:
        stop: Called with the signal's number, in the main thread between two of its instructions; what it raises is
            raised there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        stop(signum)

    earlier = {}
    try:
        for signum in _SIGNALS:
            # A shell starts what it puts into the background with `&` so; Ctrl-C is not meant for it.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                earlier[signum] = signal.signal(signum, handler)
        yield
    finally:
        for signum, old in earlier.items():
            # None: a handler that was not set from Python, which cannot be set back from it either.
            signal.signal(signum, old if old is not None else signal.SIG_DFL)
