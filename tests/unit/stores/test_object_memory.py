from __future__ import annotations

import threading

import pytest

from holdfast.stores import object_memory
from holdfast.stores.object_memory import MemoryBudget


def test_no_more_than_the_budget_is_ever_out() -> None:
    budget = MemoryBudget(100)
    lock = threading.Lock()
    used, most = 0, 0

    def transfer(num_bytes: int) -> None:
        nonlocal used, most
        for _ in range(50):
            with budget.hold(num_bytes):
                with lock:
                    used += num_bytes
                    most = max(most, used)
                with lock:
                    used -= num_bytes

    threads = [threading.Thread(target=transfer, args=(size,)) for size in (10, 35, 60, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most <= 100
    assert budget.try_take(100)


def test_a_transfer_larger_than_the_budget_goes_alone() -> None:
    budget = MemoryBudget(100)
    with budget.hold(1000):
        assert not budget.try_take(1)
    assert budget.try_take(1)


def test_who_may_not_wait_does_without() -> None:
    budget = MemoryBudget(100)
    assert budget.try_take(60)
    assert not budget.try_take(60)
    budget.give_back(60)
    assert budget.try_take(60)


class _Idle:
    """Holds bytes that it does not need."""

    def __init__(self, budget: MemoryBudget, num_bytes: int) -> None:
        self.budget, self.num_bytes = budget, num_bytes
        assert budget.try_take(num_bytes)
        budget.lend_to(self)

    def give_way(self) -> None:
        num_bytes, self.num_bytes = self.num_bytes, 0
        if num_bytes:
            self.budget.give_back(num_bytes)


def test_who_waits_gets_what_others_hold_and_do_not_need() -> None:
    budget = MemoryBudget(100)
    idle = [_Idle(budget, 50), _Idle(budget, 50)]
    with budget.hold(100):
        assert [each.num_bytes for each in idle] == [0, 0]


def test_a_long_wait_is_told_of_once_and_nobody_takes_what_somebody_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(object_memory, "_ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(object_memory, "_TELL_AFTER_S", 0.02)
    budget = MemoryBudget(100 << 20)
    assert budget.try_take(60 << 20)
    done = threading.Event()

    def wait() -> None:
        with budget.hold(80 << 20):
            done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while "HOLDFAST_OBJECT_MEMORY_MIB" not in caplog.text:
        assert not done.wait(0.01)
    assert "for 80 MiB of memory: other transfers hold 60 of the 100 MiB" in caplog.text
    assert not budget.try_take(1)
    budget.give_back(60 << 20)
    thread.join(30)
    assert done.is_set()
    assert budget.try_take(1)
