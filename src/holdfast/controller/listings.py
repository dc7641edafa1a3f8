"""Answers `get_all_reported_checkpoints`, once what was reported before it is settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.errors import WaitTimeoutError
from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.reactor import Reactor, Timer
    from holdfast.controller.rounds import Rounds
    from holdfast.persistence.writer import RunWriter


class Listings:
    """The ranks that wait for the list of checkpoints.

    Args:
        send: Answers a rank.
    """

    def __init__(
        self, reactor: Reactor, writer: RunWriter, rounds: Rounds, send: Callable[[int, protocol.Message], None]
    ) -> None:
        self._reactor = reactor
        self._writer = writer
        self._rounds = rounds
        self._send = send
        self._waiting: dict[int, protocol.CheckpointsCall] = {}
        self._timers: dict[int, Timer] = {}

    def ask(self, rank: int, call: protocol.CheckpointsCall) -> None:
        """A rank asks; it is answered now, or when nothing before its call is on its way any more."""
        self._waiting[rank] = call
        if call.timeout_s is not None:
            self._timers[rank] = self._reactor.after(call.timeout_s, lambda: self._give_up(rank))
        self.look()

    def look(self) -> None:
        """Something was settled: answers whom it can."""
        for rank, call in list(self._waiting.items()):
            if self._rounds.settled_before(call.before):
                self.forget(rank)
                entries = [protocol.ReportedEntry(c.name, bytes(c.metrics)) for c in self._writer.checkpoints()]
                self._send(rank, protocol.ReportedList(entries))

    def forget(self, rank: int) -> None:
        """The rank has its answer, or is gone."""
        self._waiting.pop(rank, None)
        timer = self._timers.pop(rank, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Answers nobody any more."""
        for timer in self._timers.values():
            timer.cancel()

    def _give_up(self, rank: int) -> None:
        call = self._waiting.get(rank)
        self.forget(rank)
        if call is not None:
            text = f"checkpoints that were reported are still on their way after {call.timeout_s:g} s; wait longer"
            self._send(rank, protocol.Refused(WaitTimeoutError.kind, text))
