from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from holdfast.stores import object_gate
from holdfast.stores.object_gate import Gate


class _Server:
    """Answers requests by a clock of its own; more of them wait at the gate than it lets through."""

    def __init__(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self._gate = gate
        self._ends_s: list[float] = []
        monkeypatch.setattr(object_gate.time, "monotonic", lambda: self.now_s)

    def answer(self, num_requests: int, end_s: Callable[[float], float]) -> None:
        """Has the gate let through so many requests, each of which is answered at the time that a function of its begin says."""
        for _ in range(num_requests):
            self._gate.enter(lambda: self._send(end_s(self.now_s)))
        while self._ends_s:
            self.now_s = heapq.heappop(self._ends_s)
            self._gate.succeeded()
            self._gate.leave()

    def _send(self, end_s: float) -> bool:
        heapq.heappush(self._ends_s, end_s)
        return True


@pytest.fixture
def gate() -> Gate:
    return Gate("a bucket")


def test_more_are_let_through_where_each_takes_long(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    _Server(gate, monkeypatch).answer(5000, lambda now_s: now_s + 0.1)
    assert gate.limit == 256


def test_no_more_are_let_through_to_a_server_that_does_what_it_can(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    free_s = 0.0

    def one_after_the_other(now_s: float) -> float:
        nonlocal free_s
        free_s = max(free_s, now_s) + 0.001
        return free_s

    _Server(gate, monkeypatch).answer(5000, one_after_the_other)
    assert 64 <= gate.limit <= 80


def test_what_does_not_wait_at_the_gate_says_nothing_of_it(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server(gate, monkeypatch)
    for _ in range(200):
        server.answer(60, lambda now_s: now_s + 0.1)
    assert gate.limit == 64


def test_a_refusal_halves_what_more_there_was(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server(gate, monkeypatch)
    server.answer(5000, lambda now_s: now_s + 0.1)
    for _ in range(256):
        gate.enter(lambda: True)
    gate.refused(server.now_s)
    assert gate.limit == 128


def test_any_number_that_were_given_up_while_they_waited_are_passed_over(gate: Gate) -> None:
    sent = []

    def send() -> bool:
        sent.append(True)
        return True

    for _ in range(gate.limit):
        gate.enter(send)
    for _ in range(10_000):
        gate.enter(lambda: False)
    gate.enter(send)
    gate.leave()
    assert len(sent) == gate.limit + 1
