"""Answers `get_all_reported_checkpoints`, once what was reported before it is settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.errors import WaitTimeoutError
from holdfast.worker import protocol

if TYPE_CHECKING:
    from holdfast.controller.reactor import Reactor, Timer
    from holdfast.controller.rounds import Rounds
    from holdfast.controller.validations import Validations
    from holdfast.persistence.writer import RunWriter


class Listings:
    """The ranks that wait for the list of checkpoints.

    Args:
        validations: Those of the run, if it has any.
        send: Answers a rank.
    """

    def __init__(
        self,
        reactor: Reactor,
        writer: RunWriter,
        rounds: Rounds,
        validations: Validations | None,
        send: Callable[[int, protocol.Call, protocol.Message], None],
    ) -> None:
        self._reactor = reactor
        self._writer = writer
        self._rounds = rounds
        self._validations = validations
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
            if self._is_settled(call):
                self.forget(rank)
                self._send(rank, call, protocol.ReportedList(self._entries()))

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

    def _is_settled(self, call: protocol.CheckpointsCall) -> bool:
        if not self._rounds.settled_before(call.before):
            return False
        return not call.validated or self._validations is None or self._validations.settled_before(call.before)

    def _entries(self) -> list[protocol.ReportedEntry]:
        # Those that wait for their outcome may not have been noted as such yet.
        waiting = set(self._validations.waiting) if self._validations is not None else set()
        return [
            protocol.ReportedEntry(
                each.name,
                bytes(each.metrics),
                "pending" if each.name in waiting else self._writer.validations.status_of(each),
            )
            for each in self._writer.checkpoints()
        ]

    def _give_up(self, rank: int) -> None:
        call = self._waiting.get(rank)
        self.forget(rank)
        if call is not None:
            what = "stored and validated" if call.validated and self._validations is not None else "stored"
            text = f"checkpoints that were reported are not {what} after {call.timeout_s:g} s; wait longer"
            self._send(rank, call, protocol.Refused(WaitTimeoutError.kind, text))
