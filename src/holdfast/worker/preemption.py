"""Whether nodes of this run are about to be taken away."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.worker import protocol
from holdfast.worker.answers import expect
from holdfast.worker.context import current


@dataclass(frozen=True)
class PreemptionInfo:
    """A notice that nodes will go.

    Attributes:
        deadline_ms: When, in milliseconds since the Unix epoch.
        preempted_node_to_ranks: The ranks that run on each of those nodes.
    """

    deadline_ms: int
    preempted_node_to_ranks: dict[str, list[int]]

    @property
    def preempted_node_ids(self) -> list[str]:
        """The nodes, sorted."""
        return sorted(self.preempted_node_to_ranks)

    @property
    def preempted_ranks(self) -> list[int]:
        """The ranks that run on them, sorted."""
        return sorted(rank for ranks in self.preempted_node_to_ranks.values() for rank in ranks)


def get_preemption_info() -> PreemptionInfo | None:
    """The notice of preemption that every rank sees alike; a barrier.

    Returns:
        None while no node is to go. The local engine has one node, the driver's own, and never knows of any.

    Raises:
        OutsideWorkerError: Called outside a training function.
        UnevenCallsError: A rank returned, or waits in another call.
    """
    state = current("get_preemption_info()")
    answer = expect(state.channel.ask(protocol.PreemptionCall()), protocol.PreemptionState)
    if answer.deadline_ms is None:
        return None
    return PreemptionInfo(answer.deadline_ms, answer.node_ranks)
