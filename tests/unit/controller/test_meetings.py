"""Who waits for whom, by counting."""

from __future__ import annotations

import pytest

from holdfast.controller.meetings import Meetings, ranks_text
from holdfast.worker import protocol

REPORT = protocol.ReportCall(1, b"{}")
BARRIER = protocol.BarrierCall()


def test_a_meeting_is_complete_when_every_rank_has_come():
    meetings = Meetings(3)
    assert not meetings.arrive(0, REPORT).complete
    assert meetings.arrive(2, REPORT).missing == [1]
    meeting = meetings.arrive(1, REPORT)
    assert meeting.complete
    meetings.close(meeting)
    assert meetings.open == {}
    assert meetings.arrive(1, BARRIER).ordinal == 2


def test_a_rank_that_left_refuses_open_and_later_meetings():
    meetings = Meetings(3)
    first = meetings.arrive(0, REPORT)
    assert meetings.leave(2) == [first]
    assert first.refusal.kind == "uneven-calls"
    assert "rank 2 returned after 0" in first.refusal.text
    late = meetings.arrive(1, REPORT)
    assert late is first
    later = meetings.arrive(0, REPORT)
    assert later.refusal is not None


def test_a_rank_that_leaves_after_its_last_call_refuses_nothing():
    meetings = Meetings(2)
    meetings.arrive(0, REPORT)
    meetings.close(meetings.arrive(1, REPORT))
    assert meetings.leave(0) == []
    assert meetings.leave(1) == []


def test_different_calls_are_a_mismatch_that_names_both():
    meetings = Meetings(2)
    meetings.arrive(0, REPORT)
    refusal = meetings.arrive(1, BARRIER).refusal
    assert "rank 0 called report, rank 1 called collective.barrier" in refusal.text


def test_the_oldest_meeting_is_described_for_a_person():
    meetings = Meetings(4)
    assert meetings.oldest() is None
    meetings.close(meetings.arrive(0, BARRIER))
    meetings.arrive(1, REPORT)
    meeting = meetings.arrive(3, REPORT)
    assert meetings.oldest() is meeting
    assert meetings.describe(meeting).startswith("ranks 1 and 3 wait in report for ranks 0 and 2")


@pytest.mark.parametrize(
    ("ranks", "text"), [([1], "rank 1"), ([3, 0], "ranks 0 and 3"), ([2, 0, 3], "ranks 0, 2 and 3")]
)
def test_ranks_read_well(ranks, text):
    assert ranks_text(ranks) == text


def test_a_report_is_expected_where_nothing_speaks_against_it():
    meetings = Meetings(2)
    assert meetings.expects_report(0)
    meetings.arrive(0, REPORT)
    assert meetings.expects_report(1)
    meetings.close(meetings.arrive(1, REPORT))
    meetings.arrive(0, BARRIER)
    assert not meetings.expects_report(1)
    meetings.close(meetings.arrive(1, BARRIER))
    meetings.leave(0)
    assert not meetings.expects_report(1)


def test_a_report_was_admitted_until_its_meeting_is_over():
    meetings = Meetings(2)
    meetings.admit(1)
    assert meetings.has_admitted(1)
    meetings.arrive(0, REPORT)
    meetings.close(meetings.arrive(1, REPORT))
    assert not meetings.has_admitted(1)
