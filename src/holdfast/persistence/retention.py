"""Which checkpoints are kept: pure functions over what exists, and the same answer kept up to date one by one.

The best K by score are kept, and the latest whatever its score, and those that are pinned. Without a score
attribute the newest are the best, so the latest counts among the K.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from holdfast.config import CheckpointConfig
from holdfast.errors import FormatError, MetricsError
from holdfast.metrics import decode_metrics, score_of
from holdfast.records import CommittedCheckpoint, RetentionPlan

# (has a score, score turned so that larger is better, report index: ties go to the newer, name: a total order)
Rank = tuple[bool, float, int, str]


@dataclass(frozen=True)
class RetentionPolicy:
    """How many to keep, and by what.

    Attributes:
        num_to_keep: None keeps all.
        attribute: The metric that ranks, nested as `a/b`; None ranks by age.
        order: `max` or `min`.
    """

    num_to_keep: int | None = None
    attribute: str | None = None
    order: str = "max"

    @classmethod
    def of(cls, config: CheckpointConfig) -> RetentionPolicy:
        """The policy that a user's configuration means."""
        return cls(config.num_to_keep, config.checkpoint_score_attribute, config.checkpoint_score_order)

    def rank(self, checkpoint: CommittedCheckpoint) -> Rank:
        """Where a checkpoint stands: the higher, the better; without a score below every number, in both orders."""
        score = None if self.attribute is None else score_in(checkpoint, self.attribute)
        if score is None:
            return (False, 0.0, checkpoint.report_index, checkpoint.name)
        return (True, -score if self.order == "min" else score, checkpoint.report_index, checkpoint.name)


def score_in(checkpoint: CommittedCheckpoint, attribute: str) -> float | None:
    """The checkpoint's score, or None where it has none that can be compared."""
    try:
        score = score_of(decode_metrics(checkpoint.metrics), attribute)
    except (MetricsError, FormatError):
        # `report` refuses such a score. Here it is an older report's, made before this metric was the score: to
        # refuse it now would end a run over a checkpoint that is whole, so it ranks as one without a score.
        return None
    return None if score is None or math.isnan(score) else score


def best(checkpoints: Iterable[CommittedCheckpoint], policy: RetentionPolicy) -> list[CommittedCheckpoint]:
    """The checkpoints from worst to best; by age where no metric ranks them."""
    return sorted(checkpoints, key=policy.rank)


def plan(
    checkpoints: Sequence[CommittedCheckpoint], policy: RetentionPolicy, *, pinned: AbstractSet[str] = frozenset()
) -> RetentionPlan:
    """What a policy deletes of all that exist.

    Args:
        checkpoints: In report order.
        pinned: Names that stay, beside those that the policy keeps.
    """
    if policy.num_to_keep is None or len(checkpoints) <= policy.num_to_keep:
        return RetentionPlan(delete=())
    keep = {checkpoint.name for checkpoint in heapq.nlargest(policy.num_to_keep, checkpoints, key=policy.rank)}
    keep.add(max(checkpoints, key=_age).name)
    return RetentionPlan(delete=tuple(c.name for c in checkpoints if c.name not in keep and c.name not in pinned))


def _age(checkpoint: CommittedCheckpoint) -> tuple[int, str]:
    return (checkpoint.report_index, checkpoint.name)


class Retention:
    """`plan`, kept up to date as checkpoints are added in report order: O(log K) each, whatever the run's length.

    Not safe for threads.
    """

    def __init__(self, policy: RetentionPolicy) -> None:
        self.policy = policy
        self._best: list[Rank] = []
        self._outside: str | None = None
        self._settled = False

    def forget(self) -> None:
        """Something else than an addition changed what exists: the next addition looks at everything."""
        self._settled = False

    def add(
        self, added: CommittedCheckpoint, existing: Iterable[CommittedCheckpoint], pinned: AbstractSet[str]
    ) -> list[str]:
        """Takes note of the newest checkpoint, and says what is to be deleted now.

        Args:
            existing: All that exist, `added` last; walked through only after `forget` and at the first call.
        """
        keep = self.policy.num_to_keep
        if keep is None:
            return []
        if not self._settled:
            return self.look(existing, pinned)
        before, self._outside = self._outside, None
        doomed = [] if before is None else [before]
        heapq.heappush(self._best, self.policy.rank(added))
        if len(self._best) > keep:
            worst = heapq.heappop(self._best)[3]
            if worst == added.name:
                # Worse than the best K, it stays for being the latest, and goes when there is a later one.
                self._outside = worst
            else:
                doomed.append(worst)
        return [name for name in doomed if name not in pinned]

    def look(self, existing: Iterable[CommittedCheckpoint], pinned: AbstractSet[str]) -> list[str]:
        """Looks at all that exist, and says what is to be deleted now."""
        existing, keep = list(existing), self.policy.num_to_keep
        if keep is None or not existing:
            return []
        self._best = heapq.nlargest(keep, [self.policy.rank(checkpoint) for checkpoint in existing])
        heapq.heapify(self._best)
        latest = max(existing, key=_age).name
        self._outside = None if any(rank[3] == latest for rank in self._best) else latest
        self._settled = True
        return list(plan(existing, self.policy, pinned=pinned).delete)
