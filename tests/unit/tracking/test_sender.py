from __future__ import annotations

import threading

from holdfast.tracking.entry import Entry
from holdfast.tracking.sender import Sender
from holdfast.tracking.tracker import Ending, Tracker
from support.waiting import LIMIT_S


class Recorder(Tracker):
    """Takes everything but the steps that it refuses, once it may."""

    def __init__(self, refuses=(), may=None):
        self.steps = []
        self.endings = []
        self.refuses = refuses
        self.may = may or threading.Event()
        self.reached = threading.Event()
        if may is None:
            self.may.set()

    def log(self, entries):
        self.reached.set()
        self.may.wait(LIMIT_S)
        for entry in entries:
            if entry.step in self.refuses:
                raise ConnectionError(f"refused {entry.step}")
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
    assert len(warnings(caplog)) == 1
    assert "5 reports wait" in warnings(caplog)[0]
    gate.set()
    sender.finish(Ending.FAILED, LIMIT_S)
    assert recorder.steps == [0, 1, 2, 3, 4, 5]
    assert recorder.endings == [Ending.FAILED]


def test_the_end_waits_no_longer_than_it_may(caplog):
    gate = threading.Event()
    recorder = Recorder(may=gate)
    sender = Sender("it", lambda: recorder)
    sender.send(entry(0))
    sender.finish(Ending.SUCCEEDED, 0.01)
    assert "had not taken everything after 0.01 s" in warnings(caplog)[0]
    gate.set()
    sender.finish(Ending.SUCCEEDED, LIMIT_S)


def test_a_failure_is_told_once_and_the_next_reports_are_tried(caplog):
    recorder = Recorder(refuses=(0, 1))
    sender = Sender("it", lambda: recorder)
    for step in range(4):
        recorder.reached.clear()
        sender.send(entry(step))
        assert recorder.reached.wait(LIMIT_S)  # each alone
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert recorder.steps == [2, 3]
    assert len(warnings(caplog)) == 1
    assert "refused 0" in warnings(caplog)[0]


def test_a_tracker_that_cannot_be_opened_is_tried_again(caplog):
    recorder, tries = Recorder(), []
    opened = threading.Event()

    def open_tracker():
        tries.append(None)
        opened.set()
        if len(tries) == 1:
            raise ConnectionError("nobody there")
        return recorder

    sender = Sender("it", open_tracker)
    sender.send(entry(0))
    assert opened.wait(LIMIT_S)
    while not warnings(caplog):
        threading.Event().wait(0.01)
    sender.send(entry(1))
    sender.finish(Ending.SUCCEEDED, LIMIT_S)
    assert recorder.steps == [1]
    assert len(warnings(caplog)) == 1
    assert "nobody there" in warnings(caplog)[0]
