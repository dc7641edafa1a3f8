from __future__ import annotations

import threading

from holdfast.tracking.entry import Entry
from holdfast.tracking.sender import Sender
from holdfast.tracking.tracker import Ending, Tracker
from support.waiting import LIMIT_S


class Recorder(Tracker):
    """Takes everything but the steps that it refuses, once it may."""

    def __init__(self, refuses=(), may=None, refusal=ValueError):
        self.steps = []
        self.endings = []
        self.refuses = refuses
        self.refusal = refusal
        self.may = may or threading.Event()
        self.reached = threading.Event()
        if may is None:
            self.may.set()

    def log(self, entries):
        self.reached.set()
        self.may.wait(LIMIT_S)
        for entry in entries:
            if entry.step in self.refuses:
                raise self.refusal(f"refused {entry.step}")
            self.steps.append(entry.step)

    def finish(self, ending):
        self.endings.append(ending)


def entry(step):
    return Entry(step, {"loss": 0.5})


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_everything_arrives_in_order_before_the_end(caplog):
    recorder = Recorder()
    sender = Sender("it", lambda: recorder)
    for step in range(1000):
        sender.send(entry(step))
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert recorder.steps == list(range(1000))
    assert recorder.endings == [Ending.SUCCEEDED]
    assert warnings(caplog) == []


def test_nobody_waits_for_a_tracker_that_does_not_answer(caplog):
    gate = threading.Event()
    recorder = Recorder(may=gate)
    sender = Sender("it", lambda: recorder, max_waiting=5)
    sender.send(entry(0))
    assert recorder.reached.wait(LIMIT_S)
    for step in range(1, 20):
        sender.send(entry(step))
    sender.finish(Ending.FAILED, 0.01)
    first, end = warnings(caplog)
    assert "5 reports wait" in first
    assert "lacks 20 reports" in end
    gate.set()
    sender.finish(Ending.FAILED, LIMIT_S)
    assert recorder.steps == [0, 1, 2, 3, 4]
    assert recorder.endings == [Ending.FAILED]
    assert "lacks 15 reports" in warnings(caplog)[-1]


def test_the_end_waits_no_longer_than_it_may(caplog):
    gate = threading.Event()
    recorder = Recorder(may=gate)
    sender = Sender("it", lambda: recorder)
    sender.send(entry(0))
    sender.finish(Ending.SUCCEEDED, 0.01)
    assert "had not taken everything after 0.01 s" in warnings(caplog)[0]
    gate.set()
    sender.finish(Ending.SUCCEEDED, LIMIT_S)


def test_a_start_that_takes_longer_than_the_end_waits_is_told_with_what_is_missing_and_the_remedy(caplog):
    gate, recorder = threading.Event(), Recorder()

    def open_tracker():
        gate.wait(LIMIT_S)
        return recorder

    sender = Sender("it", open_tracker, start_s=0.02)
    sender.send(entry(0))
    sender.send(entry(1))
    sender.finish(Ending.SUCCEEDED, 0.01)
    (end,) = warnings(caplog)
    assert end.startswith(
        "it lacks 2 reports of this fit(), all of which the run itself has: it was still starting after 0.02 s"
    )
    assert "flush_timeout_s" in end
    gate.set()  # the script goes on, and they come after all
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert recorder.steps == [0, 1]
    assert len(warnings(caplog)) == 1


def test_a_start_does_not_count_as_the_time_that_the_end_may_take():
    gate, recorder = threading.Event(), Recorder()

    def open_tracker():
        gate.wait(LIMIT_S)
        return recorder

    sender = Sender("it", open_tracker, start_s=LIMIT_S)
    sender.send(entry(0))
    sender.finish(Ending.INTERRUPTED, 0)
    assert not gate.is_set()  # it has not waited for that
    opening = threading.Timer(0.1, gate.set)
    opening.start()
    sender.finish(Ending.SUCCEEDED, 0)
    assert gate.is_set()
    opening.join()
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert recorder.steps == [0]


def test_one_that_has_taken_everything_and_does_not_close_may_lack_some(caplog):
    closing, gate, recorder = threading.Event(), threading.Event(), Recorder()

    def finish(ending):
        closing.set()
        gate.wait(LIMIT_S)

    recorder.finish = finish
    sender = Sender("it", lambda: recorder)
    sender.send(entry(0))
    sender.finish(Ending.SUCCEEDED, 0)
    assert closing.wait(LIMIT_S)
    caplog.clear()
    sender.finish(Ending.SUCCEEDED, 0.01)
    (end,) = warnings(caplog)
    assert end.startswith(
        "it may lack reports of this fit(), all of which the run itself has: it was not closed after 0.01 s"
    )
    assert "flush_timeout_s" in end
    gate.set()
    sender.finish(Ending.SUCCEEDED, LIMIT_S)


def test_what_is_refused_is_told_of_at_once_and_counted_and_the_next_reports_are_tried(caplog):
    recorder = Recorder(refuses=(0, 1))
    sender = Sender("it", lambda: recorder)
    for step in range(4):
        recorder.reached.clear()
        sender.send(entry(step))
        assert recorder.reached.wait(LIMIT_S)  # each alone
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert recorder.steps == [2, 3]
    first, end = warnings(caplog)
    assert "ValueError: refused 0" in first
    assert "lacks 2 reports" in end


def test_a_tracker_that_cannot_be_opened_is_tried_again_with_what_waits(caplog):
    recorder, tries = Recorder(), []

    def open_tracker():
        tries.append(None)
        if len(tries) < 4:
            raise ValueError("nobody there")
        return recorder

    sender = Sender("it", open_tracker, first_pause_s=0.001)
    sender.send(entry(0))
    sender.send(entry(1))
    assert recorder.reached.wait(LIMIT_S)
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert recorder.steps == [0, 1]
    assert len(tries) == 4
    (warning,) = warnings(caplog)  # nothing is missing, so the end has nothing to tell
    assert "nobody there" in warning


def test_a_tracker_that_goes_away_is_opened_anew_and_gets_what_it_did_not_take(caplog):
    away, back = Recorder(refuses=(1,), refusal=ConnectionResetError), Recorder()
    opened = iter([away, back])
    sender = Sender("it", lambda: next(opened), first_pause_s=0.001)
    sender.send(entry(0))
    assert away.reached.wait(LIMIT_S)
    sender.send(entry(1))
    assert back.reached.wait(LIMIT_S)
    sender.send(entry(2))
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert (away.steps, back.steps[-2:]) == ([0], [1, 2])
    assert (away.endings, back.endings) == ([], [Ending.SUCCEEDED])
    (warning,) = warnings(caplog)
    assert "ConnectionResetError: refused 1" in warning


def test_one_that_stays_away_is_tried_a_last_time_at_the_end(caplog):
    tries, tried = [], threading.Event()

    def open_tracker():
        tries.append(None)
        tried.set()
        raise ConnectionRefusedError("nobody there")

    sender = Sender("it", open_tracker, first_pause_s=LIMIT_S * 10)
    sender.send(entry(0))
    assert tried.wait(LIMIT_S)
    sender.send(entry(1))
    sender.finish(Ending.SUCCEEDED, LIMIT_S)  # the pause ends with it
    assert len(tries) in (1, 2)  # one, where the end came before it had failed
    _, end = warnings(caplog)
    assert "lacks 2 reports" in end
    assert "nobody there" in end


def test_a_call_that_does_not_come_back_is_told_of_while_it_goes_on(caplog):
    gate = threading.Event()
    sender = Sender("it", lambda: Recorder(may=gate), slow_s=0.01)
    sender.send(entry(0))
    while not warnings(caplog):
        threading.Event().wait(0.01)
    gate.set()
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    (warning,) = warnings(caplog)
    assert "has not answered for 0.01 s" in warning
