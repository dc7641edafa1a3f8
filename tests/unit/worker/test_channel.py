"""The worker's end of its socket: whose answer is whose."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading

import pytest

from holdfast.errors import DriverLostError
from holdfast.worker import protocol
from holdfast.worker.channel import Channel


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
    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        found = []

        def read():
            select.select([driver], [], [])  # no more of it goes before something is read
            os.kill(os.getpid(), signal.SIGALRM)
            found.extend(question(driver) for _ in range(2))

        reader = threading.Thread(target=read)
        reader.start()
        with pytest.raises(KeyboardInterrupt):
            channel.send(protocol.ReportCall(1, b"x" * (4 << 20)))
        channel.send(protocol.BarrierCall())
        reader.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [type(each) for each in found] == [protocol.ReportCall, protocol.BarrierCall]


def test_a_large_call_whose_thread_an_interrupt_kept_from_beginning_is_not_sent_later(ends, monkeypatch):
    channel, driver = ends
    threads = []

    def start_late(thread):
        threads.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_late)
        with pytest.raises(KeyboardInterrupt):
            channel.send(protocol.ReportCall(1, b"x" * (1 << 17)))
    threads[0].start()
    threads[0].join()
    channel.send(protocol.BarrierCall())
    assert isinstance(question(driver), protocol.BarrierCall)
    assert channel.num_reports == 0


def test_a_driver_that_is_gone_ends_every_wait(ends):
    channel, driver = ends
    asked = channel.ask_ahead(protocol.AdmissionCall(1))
    driver.close()
    with pytest.raises(DriverLostError):
        channel.answer_to(asked)
    with pytest.raises(DriverLostError):
        channel.send(protocol.ReportCall(1, b"x" * (4 << 20)))
