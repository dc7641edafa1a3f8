"""Small collectives over the controller, for what has no framework's process group at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import cloudpickle

from holdfast.secrecy import private_channel
from holdfast.worker import protocol
from holdfast.worker.answers import expect
from holdfast.worker.context import current

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["barrier", "broadcast_from_rank_zero"]

T = TypeVar("T", bound="Mapping[str, Any] | Any")


def barrier() -> None:
    """Returns once every rank has called it.

    Raises:
        UnevenCallsError: A rank returned, or waits in another call.
        WaitTimeoutError: A rank did not come in time.
    """
    state = current("collective.barrier()")
    expect(state.channel.ask(protocol.BarrierCall()), protocol.Proceed)


def broadcast_from_rank_zero(data: T) -> T:
    """Returns rank 0's `data` on every rank; a barrier too.

    Args:
        data: Anything that cloudpickle takes, meant for small values; ignored on other ranks.

    Raises:
        UnevenCallsError: A rank returned, or waits in another call.
        WaitTimeoutError: A rank did not come in time.
    """
    state = current("collective.broadcast_from_rank_zero()")
    with private_channel():
        mine = cloudpickle.dumps(data) if state.job.rank == 0 else None
    answer = expect(state.channel.ask(protocol.BroadcastCall(mine)), protocol.Delivered)
    if state.job.rank == 0:
        return data
    received: T = cloudpickle.loads(answer.data)
    return received
