from __future__ import annotations

import math
import time

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from holdfast.metrics import encode_metrics
from holdfast.persistence.ledger import Ledger
from holdfast.persistence.retention import RetentionPolicy, best, plan, score_in
from holdfast.records import CommittedCheckpoint

_scores = st.one_of(st.none(), st.just(math.nan), st.floats(allow_nan=False, width=16), st.integers(-3, 3).map(float))
_policies = st.builds(
    RetentionPolicy,
    num_to_keep=st.one_of(st.none(), st.integers(1, 4)),
    attribute=st.sampled_from([None, "score"]),
    order=st.sampled_from(["max", "min"]),
)


def _made(index: int, number: float | None = None, **metrics: object) -> CommittedCheckpoint:
    values = {**({} if number is None else {"score": number}), **metrics}
    return CommittedCheckpoint(
        name=f"c{index}",
        id=f"id{index}",
        report_index=index,
        created="",
        epoch=1,
        attempt=1,
        world_size=1,
        metrics=msgspec.Raw(encode_metrics(values)),
        num_files=1,
        size_bytes=1,
    )


def _kept(scores: list[float | None], policy: RetentionPolicy, pinned: frozenset[str] = frozenset()) -> list[str]:
    made = [_made(index, score) for index, score in enumerate(scores)]
    deleted = plan(made, policy, pinned=pinned).delete
    return [checkpoint.name for checkpoint in made if checkpoint.name not in deleted]


@given(st.lists(_scores, max_size=9), _policies, st.frozensets(st.sampled_from(["c0", "c2", "c5"])))
def test_the_latest_the_pinned_and_never_a_better_one_in_favour_of_a_worse(scores, policy, pinned) -> None:
    made = [_made(index, score) for index, score in enumerate(scores)]
    deleted = set(plan(made, policy, pinned=pinned).delete)
    kept = [checkpoint for checkpoint in made if checkpoint.name not in deleted]
    assert not deleted & pinned
    if made:
        assert made[-1].name not in deleted
    if policy.num_to_keep is None:
        assert not deleted
        return
    # What is kept for its rank alone (neither latest nor pinned) beats everything that is deleted.
    for checkpoint in kept:
        if checkpoint is not made[-1] and checkpoint.name not in pinned:
            for other in made:
                if other.name in deleted:
                    assert policy.rank(checkpoint) > policy.rank(other)
    assert len(kept) >= min(len(made), policy.num_to_keep)
    assert len(kept) <= policy.num_to_keep + 1 + len(pinned)
    # Asking again changes nothing.
    assert not plan(kept, policy, pinned=pinned).delete


@given(
    st.lists(_scores, max_size=12), _policies, st.frozensets(st.sampled_from(["c0", "c2", "c5"])), st.integers(0, 12)
)
def test_one_by_one_keeps_what_the_plan_over_all_keeps(scores, policy, pinned, opened_with) -> None:
    made = [_made(index, score) for index, score in enumerate(scores)]
    ledger = Ledger(made[:opened_with], policy, pinned)
    model = made[:opened_with]
    for number, checkpoint in enumerate(made[opened_with:]):
        if number == 3 and len(model) > 1:
            ledger.drop(model.pop(0))
        doomed = ledger.add(checkpoint)
        model.append(checkpoint)
        planned = plan(model, policy, pinned=pinned).delete
        assert sorted(each.name for each in doomed) == sorted(planned)
        model = [each for each in model if each.name not in planned]
        assert ledger.snapshot() == model


def test_without_a_score_the_newest_are_kept_and_the_latest_counts() -> None:
    assert _kept([1.0, 2.0, 3.0, 0.0], RetentionPolicy(2)) == ["c2", "c3"]


def test_with_a_score_the_latest_is_kept_beside_the_best() -> None:
    assert _kept([5.0, 9.0, 7.0, 1.0], RetentionPolicy(2, "score")) == ["c1", "c2", "c3"]
    assert _kept([5.0, 9.0, 7.0, 8.0], RetentionPolicy(2, "score")) == ["c1", "c3"]


def test_with_order_min_a_checkpoint_without_the_metric_never_pushes_out_a_good_one() -> None:
    policy = RetentionPolicy(2, "score", "min")
    assert _kept([0.1, None, math.nan, 0.2, None, None], policy) == ["c0", "c3", "c5"]
    assert _kept([math.inf, None, 1.0, None], RetentionPolicy(2, "score", "min")) == ["c0", "c2", "c3"]


def test_ties_go_to_the_newer() -> None:
    assert _kept([1.0, 1.0, 1.0, 0.0], RetentionPolicy(1, "score")) == ["c2", "c3"]


def test_a_score_that_is_no_number_ranks_as_none() -> None:
    assert score_in(_made(1, score="high"), "score") is None
    assert score_in(_made(1, None, a={"b": 3}), "a/b") == 3


def test_best_is_ascending_with_the_best_last() -> None:
    made = [_made(index, score) for index, score in enumerate([3.0, None, 1.0, 2.0])]
    assert [each.name for each in best(made, RetentionPolicy(2, "score"))] == ["c1", "c2", "c3", "c0"]
    assert [each.name for each in best(made, RetentionPolicy(2, "score", "min"))] == ["c1", "c0", "c3", "c2"]
    assert [each.name for each in best(made, RetentionPolicy())] == ["c0", "c1", "c2", "c3"]


def test_the_three_thousandth_addition_costs_what_the_tenth_did() -> None:
    for policy in (RetentionPolicy(), RetentionPolicy(2000, "score")):
        ledger = Ledger([], policy, frozenset())
        made = [_made(index, float(index * 7919 % 1000)) for index in range(20_000)]
        spans = []
        for start in range(0, 20_000, 1000):
            began = time.thread_time()
            for checkpoint in made[start : start + 1000]:
                ledger.add(checkpoint)
            spans.append(time.thread_time() - began)
        # O(N) work would make the last thousand cost twenty times the first.
        assert min(spans[-5:]) < 6 * max(min(spans[:5]), 1e-3)
