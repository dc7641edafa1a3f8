"""The worker's end of its socket: whose answer is whose."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

from holdfast.errors import DriverLostError
from holdfast.worker import protocol
from holdfast.worker.channel import Channel
from support.waiting import beside


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def answer(connection, number, message):
    connection.sendall(protocol.answer(number, protocol.body(message)))


def question(connection):
    """The next call that the worker made."""
    size = protocol.HEADER.unpack(connection.recv(protocol.HEADER.size, socket.MSG_WAITALL))[0]
    return protocol.question_decoder.decode(connection.recv(size, socket.MSG_WAITALL))


def test_an_answer_that_nobody_waits_for_is_not_that_of_the_next_call(ends):
    channel, driver = ends
    channel.ask_ahead(protocol.AdmissionCall(1))
    answer(driver, 1, protocol.Admission(True))
    answer(driver, 2, protocol.Proceed("checkpoint_000001"))
    assert channel.ask(protocol.BarrierCall()) == protocol.Proceed("checkpoint_000001")


def test_an_answer_that_comes_with_another_is_kept(ends):
    channel, driver = ends
    asked = channel.ask_ahead(protocol.AdmissionCall(1))
    answer(driver, 1, protocol.Admission(True))
    answer(driver, 2, protocol.Proceed())
    assert channel.ask(protocol.BarrierCall()) == protocol.Proceed()  # another thread's
    assert channel.answer_to(asked) == protocol.Admission(True)


def test_an_answer_may_overtake_that_of_a_call_which_an_interrupt_has_ended(ends):
    channel, driver = ends

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        channel.ask(protocol.BarrierCall(), interrupt)
    asked = channel.ask_ahead(protocol.AdmissionCall(1))
    assert [question(driver).number for _ in range(2)] == [1, 2]
    answer(driver, 2, protocol.Admission(False))
    answer(driver, 1, protocol.Refused("timeout", "late"))
    assert channel.answer_to(asked) == protocol.Admission(False)
    answer(driver, 3, protocol.Proceed())
    assert channel.ask(protocol.BarrierCall()) == protocol.Proceed()


def test_a_call_that_an_interrupt_ended_before_it_was_sent_shifts_nothing(ends, monkeypatch):
    channel, driver = ends
    with monkeypatch.context() as patched:
        patched.setattr(Channel, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            channel.ask(protocol.BarrierCall())
    answer(driver, 2, protocol.Proceed())
    assert channel.ask(protocol.BarrierCall()) == protocol.Proceed()


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_large_call_is_sent_whole_whatever_another_thread_says(ends):
    channel, driver = ends
    large = protocol.ReportCall(1, b"x" * (4 << 20))
    senders = [threading.Thread(target=channel.send, args=(each,)) for each in (large, protocol.BarrierCall(), large)]
    for sender in senders:
        sender.start()
    found = [question(driver) for _ in senders]
    for sender in senders:
        sender.join()
    assert sorted(type(each).__name__ for each in found) == ["BarrierCall", "ReportCall", "ReportCall"]


def test_an_interrupt_leaves_no_half_of_a_large_call(ends):
    channel, driver = ends
    main, interrupts, found, counted = threading.get_ident(), [], [], []

    def read():
        driver.recv(1, socket.MSG_PEEK)  # a part of it is there, and no room for the rest
        counted.append(channel.num_reports)
        while not interrupts:  # again and again, for one that comes just before a wait does not end it
            signal.pthread_kill(main, signal.SIGALRM)
            time.sleep(0.01)
        found.extend(question(driver) for _ in range(2))

    def interrupt(signum, _):
        if not interrupts:
            interrupts.append(signum)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with beside(read):
            with pytest.raises(KeyboardInterrupt):
                channel.send(protocol.ReportCall(1, b"x" * (4 << 20)))
            channel.send(protocol.BarrierCall())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [type(each) for each in found] == [protocol.ReportCall, protocol.BarrierCall]
    # A second interrupt ends the wait for the rest of it, which goes all the same.
    assert counted == [1]


def test_a_large_call_that_cannot_be_sent_is_told_of(ends, monkeypatch):
    channel, _ = ends

    class Full:
        def send(self, frame):
            raise MemoryError

    monkeypatch.setattr(channel, "_socket", Full())
    with pytest.raises(MemoryError):
        channel.send(protocol.ReportCall(1, b"x" * (4 << 20)))


def test_an_interrupt_before_a_large_call_begins_leaves_nothing_of_it(ends, monkeypatch):
    channel, driver = ends
    late, start = [], threading.Thread.start
    with monkeypatch.context() as patched:
        # As on a busy machine, where a new thread gets its turn after the interrupt has ended the wait for it.
        patched.setattr(threading.Thread, "start", lambda thread: late.append(thread) or interrupted())
        with pytest.raises(KeyboardInterrupt):
            channel.send(protocol.ReportCall(1, b"x" * (4 << 20)))
    start(late[0])
    late[0].join()
    channel.send(protocol.BarrierCall())
    assert type(question(driver)) is protocol.BarrierCall
    assert channel.num_reports == 0


def test_a_driver_that_is_gone_ends_every_wait(ends):
    channel, driver = ends
    asked = channel.ask_ahead(protocol.AdmissionCall(1))
    driver.close()
    with pytest.raises(DriverLostError):
        channel.answer_to(asked)
    with pytest.raises(DriverLostError):
        channel.send(protocol.ReportCall(1, b"x" * (4 << 20)))
