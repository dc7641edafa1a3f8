from __future__ import annotations

import asyncio

from holdfast.stores.object_calls import Calls, Judgement, Patience
from holdfast.stores.object_gate import Gate

LIMIT_S = 2.0


def test_a_request_that_waited_for_its_turn_has_its_whole_time_when_that_comes() -> None:
    gate = Gate("a bucket")
    for _ in range(10):  # as a server does that takes few
        gate.refused(float("inf"))
    calls = Calls(
        gate, lambda error: Judgement.MAY_PASS, Patience(retries=3, limit_s=LIMIT_S), lambda error, waited_s: None
    )
    tries = []

    async def slow() -> None:
        await asyncio.sleep(1.2 * LIMIT_S)

    async def fails_once() -> str:
        tries.append(True)
        if len(tries) == 1:
            raise OSError("away")
        return "done"

    holding = [calls.begin(slow, bulk=True) for _ in range(gate.limit)]
    assert calls.begin(fails_once, bulk=True).result(60) == "done"
    assert len(tries) == 2
    for each in holding:
        each.result(60)
