"""How much of a large file is on its way at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.stores import object_put
from holdfast.stores.object_memory import MemoryBudget

_PART = 5 << 20


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> MemoryBudget:
    found = MemoryBudget(256 << 20)
    monkeypatch.setattr(object_put, "budget", lambda: found)
    return found


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[object]]:
    """The files that go up in parts."""
    found: set[object] = {object()}
    monkeypatch.setattr(object_put, "_large", found)
    return found


def test_a_file_that_is_alone_goes_with_many_parts_at_once(shared: MemoryBudget, large: set[object]) -> None:
    with object_put._memory_for_parts(_PART, 1000) as at_once:
        assert at_once == 24
    assert shared.try_take(256 << 20)


def test_all_parts_of_a_file_that_has_few_go_at_once(shared: MemoryBudget, large: set[object]) -> None:
    with object_put._memory_for_parts(_PART, 7) as at_once:
        assert at_once == 7


def test_files_that_begin_together_share_the_memory(shared: MemoryBudget, large: set[object]) -> None:
    large |= {object() for _ in range(7)}
    held = [object_put._memory_for_parts(_PART, 1000) for _ in large]
    assert [each.__enter__() for each in held] == [3] * 8
    for each in held:
        each.__exit__(None, None, None)
    assert shared.try_take(256 << 20)


def test_who_finds_little_left_goes_with_that(shared: MemoryBudget, large: set[object]) -> None:
    with shared.hold(200 << 20), object_put._memory_for_parts(_PART, 1000) as at_once:
        assert at_once == 6


def test_a_budget_that_is_less_than_a_part_is_taken_whole(monkeypatch: pytest.MonkeyPatch, large: set[object]) -> None:
    found = MemoryBudget(1 << 20)
    monkeypatch.setattr(object_put, "budget", lambda: found)
    with object_put._memory_for_parts(_PART, 1000) as at_once:
        assert at_once == 1
        assert not found.try_take(1)
