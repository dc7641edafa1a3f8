"""Retention while scores are still to come."""

from __future__ import annotations

import msgspec

from holdfast.persistence.ledger import Ledger
from holdfast.persistence.retention import RetentionPolicy
from holdfast.records import CommittedCheckpoint


def checkpoint(index, **metrics):
    return CommittedCheckpoint(
        name=f"checkpoint_{index:06d}",
        id=str(index),
        report_index=index,
        created="",
        epoch=1,
        attempt=1,
        world_size=1,
        metrics=msgspec.Raw(msgspec.json.encode(metrics)),
        num_files=1,
        size_bytes=1,
    )


def names(checkpoints):
    return [int(each.id) for each in checkpoints]


def ledger(keep=1):
    return Ledger([], RetentionPolicy(keep, "score", "max"), frozenset())


def add(ledger, index, *, hold=True, **metrics):
    doomed = ledger.add(checkpoint(index, **metrics))
    if hold:
        ledger.hold(f"checkpoint_{index:06d}")
    return names(doomed)


def test_what_waits_for_its_score_stays_until_it_has_it():
    kept = ledger()
    for index in (1, 2, 3, 4):
        assert add(kept, index) == []
    assert names(kept.settle("checkpoint_000002", b'{"score": 9}')) == []  # the best of all that have one
    assert names(kept.settle("checkpoint_000001", b'{"score": 5}')) == [1]
    assert names(kept.settle("checkpoint_000003", None)) == [3]  # failed: it has no score
    assert names(kept.settle("checkpoint_000004", b'{"score": 1}')) == []  # the latest
    assert names(kept.snapshot()) == [2, 4]
    assert add(kept, 5, hold=False, score=7) == [4]


def test_metrics_join_those_that_were_reported():
    kept = ledger(2)
    add(kept, 1, loss=3, score=1)
    kept.settle("checkpoint_000001", b'{"score": 2, "more": 4}')
    assert msgspec.json.decode(kept.snapshot()[0].metrics) == {"loss": 3, "score": 2, "more": 4}


def test_an_outcome_decides_also_where_this_driver_has_added_nothing():
    kept = Ledger([checkpoint(1), checkpoint(2), checkpoint(3)], RetentionPolicy(1, "score", "max"), frozenset())
    for index in (1, 2):
        kept.hold(f"checkpoint_{index:06d}")
    assert names(kept.settle("checkpoint_000001", b'{"score": 1}')) == []
    assert names(kept.settle("checkpoint_000002", b'{"score": 2}')) == [1]
    assert names(kept.snapshot()) == [2, 3]
