"""The worker's end of its socket: whose answer is whose."""

from __future__ import annotations

import socket

import pytest

from holdfast.errors import DriverLostError
from holdfast.worker import protocol
from holdfast.worker.channel import Channel


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def answer(connection, message):
    connection.sendall(protocol.frame(message))


def test_an_answer_that_nobody_waits_for_is_not_that_of_the_next_question(ends):
    channel, driver = ends
    channel.ask_ahead(protocol.AdmissionCall())
    answer(driver, protocol.Admission(True))
    answer(driver, protocol.Proceed("checkpoint_000001"))
    assert channel.ask(protocol.BarrierCall()) == protocol.Proceed("checkpoint_000001")


def test_an_answer_that_comes_with_another_is_kept(ends):
    channel, driver = ends
    asked = channel.ask_ahead(protocol.AdmissionCall())
    answer(driver, protocol.Admission(True, "checkpoint_000001"))
    answer(driver, protocol.Proceed())
    assert channel.ask(protocol.BarrierCall()) == protocol.Proceed()  # another thread's
    assert channel.answer_to(asked) == protocol.Admission(True, "checkpoint_000001")


def test_an_interrupted_wait_leaves_its_answer_to_nobody(ends):
    channel, driver = ends

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        channel.ask(protocol.BarrierCall(), interrupt)
    answer(driver, protocol.Refused("timeout", "late"))
    answer(driver, protocol.Proceed())
    assert channel.ask(protocol.BarrierCall()) == protocol.Proceed()


def test_a_driver_that_is_gone_ends_every_wait(ends):
    channel, driver = ends
    asked = channel.ask_ahead(protocol.AdmissionCall())
    driver.close()
    with pytest.raises(DriverLostError):
        channel.answer_to(asked)
