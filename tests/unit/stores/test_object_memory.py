from __future__ import annotations

import threading

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
