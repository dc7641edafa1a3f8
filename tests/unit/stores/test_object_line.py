"""When the bytes of files get more time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from holdfast.stores import object_line
from holdfast.stores.object_calls import Calls, Judgement, Patience
from holdfast.stores.object_gate import Gate
from holdfast.stores.object_line import Line
from holdfast.stores.object_memory import MemoryBudget

MIB = 1 << 20
TIMED_OUT = TimeoutError("HTTP error: operation timed out")


@pytest.fixture
def calls() -> Calls:
    return Calls(Gate("s3://bucket"), lambda _: Judgement.FINAL, Patience(0, 0.0), lambda *_: None)


class Clock:
    now_s = 100.0


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> Line:
    monkeypatch.setattr(object_line, "budget", lambda: MemoryBudget(256 * MIB))
    monkeypatch.setattr(object_line, "monotonic", lambda: Clock.now_s)
    return Line("s3://bucket", 60.0, calls)


def carry(
    line: Line, num_bytes: int, error: Exception | None = None, *, took_s: float = 60.0, is_alive: bool = True
) -> None:
    async def request() -> None:
        Clock.now_s += took_s
        if is_alive:
            line._calls.answered_s = Clock.now_s
        if error is not None:
            raise error

    asyncio.run(line.carry(num_bytes, request))


def test_a_line_on_which_bytes_came_late_is_thin_for_bytes_alone(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    assert (line.is_thin_for(5 * MIB), line.at_once(24)) == (False, 24)
    with caplog.at_level(logging.WARNING, "holdfast"):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                carry(line, 5 * MIB, TIMED_OUT)
    assert (line.is_thin_for(5 * MIB), line.at_once(24), line.at_once(3)) == (True, 4, 3)
    assert not line.is_thin_for(1000)
    assert caplog.text.count("600 s from now on") == 1


@pytest.mark.parametrize(
    ("num_bytes", "error", "is_alive"),
    [
        (5 * MIB, OSError("connection reset"), True),
        (1000, TIMED_OUT, True),
        (5 * MIB, TIMED_OUT, False),
        (5 * MIB, OSError("ConnectError: operation timed out"), True),
    ],
    ids=["broken", "few-bytes", "silent-server", "not-connected"],
)
def test_what_has_another_reason_leaves_it_as_it_was(
    line: Line, num_bytes: int, error: Exception, is_alive: bool
) -> None:
    for took_s in (5.0, 60.0):
        with pytest.raises(OSError, match=str(error)):
            carry(line, num_bytes, error, took_s=took_s, is_alive=is_alive)
    assert not line.is_thin_for(5 * MIB)


@pytest.mark.parametrize(
    ("num_bytes", "took_s", "times", "is_thin"),
    [
        (40 * MIB, 4.0, 1, False),
        (40 * MIB, 5.0, 1, True),
        (1 * MIB, 0.001, 1, True),
        (1 * MIB, 0.1, 256, False),
        (1 * MIB, 0.2, 300, True),
    ],
    ids=["fast", "slow", "too-little-to-say", "fast-together", "slow-together"],
)
def test_it_is_thin_until_it_has_shown_that_it_is_not(
    line: Line, num_bytes: int, took_s: float, times: int, is_thin: bool
) -> None:
    with pytest.raises(TimeoutError):
        carry(line, 5 * MIB, TIMED_OUT)
    for _ in range(times):
        carry(line, num_bytes, took_s=took_s)
    assert line.is_thin_for(5 * MIB) is is_thin


def test_on_a_thin_line_one_part_more_goes_at_once_after_each_that_arrived(line: Line) -> None:
    with pytest.raises(TimeoutError):
        carry(line, 5 * MIB, TIMED_OUT)
    carry(line, 5 * MIB, took_s=50.0)
    assert line.at_once(24) == 5
