"""The processes that one zygote has started, told apart: whoever started one hears of its end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.controller.group import Exit
from holdfast.engines.local import wire

if TYPE_CHECKING:
    from holdfast.controller.reactor import Reactor
    from holdfast.engines.local.launcher import Zygote

Ended = Callable[[Exit], None]


class Family:
    """A zygote that several groups of workers share, in one reactor."""

    def __init__(self, reactor: Reactor, zygote: Zygote) -> None:
        self.zygote = zygote
        self._reactor = reactor
        self._ended: dict[int, Ended] = {}
        reactor.watch(zygote.fileno(), self._read)

    def start(self, descriptors: tuple[int, int, int, int], ended: Ended) -> int:
        """Starts a process; returns its token. `ended` is called once, in the reactor's thread.

        Raises:
            WorkerStartError: The zygote is gone.
        """
        token = self.zygote.spawn(descriptors)
        self._ended[token] = ended
        return token

    def signal(self, token: int, signum: int, *, group: bool) -> None:
        """Sends a signal to a process where it still runs; to all that it has started too if `group`."""
        if token in self._ended:
            self.zygote.signal(token, signum, group=group)

    def forget(self, token: int) -> None:
        """Nobody wants to hear of its end any more."""
        self._ended.pop(token, None)

    def lost(self) -> None:
        """The zygote is gone, and the kernel has killed all that it had started; safe to repeat."""
        self._reactor.forget(self.zygote.fileno())
        words = self.zygote.last_words()
        detail = f"the process that started it is gone{': ' + words if words else ''}"
        while self._ended:
            self._ended.popitem()[1](Exit(-signal.SIGKILL, detail, is_lost=True))

    def _read(self, _: int) -> None:
        message = self.zygote.receive()
        if message is None:
            self.lost()
        elif isinstance(message, wire.Exited | wire.NotStarted):
            ended = self._ended.pop(message.token, None)
            if ended is None:
                return
            if isinstance(message, wire.Exited):
                ended(Exit(message.code))
            else:
                ended(Exit(1, f"it could not be started: {message.reason}"))
