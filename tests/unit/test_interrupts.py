"""Signals of the main thread, wherever it waits."""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import signal
import threading
import time
from collections import deque

import pytest

from holdfast.interrupts import StopRequests
from support.waiting import LIMIT_S, wait_until


class EndedError(Exception):
    pass


def end(*_):
    raise EndedError


def lose(signum, wait):
    """A signal comes after Python's last look at its signals and before the wait: there is no instruction between the two."""
    # Called by C code, and holding the interpreter's lock, so that nothing looks in between.
    calls = functools.partial(ctypes.PyDLL(None).kill, os.getpid(), signum), wait
    deque(map(operator.call, calls), maxlen=0)


@pytest.fixture
def stop():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGURG)]
    stop = StopRequests()
    with stop.handled():
        yield stop
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGURG)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not any(each.name == "holdfast-signals" for each in threading.enumerate())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", ["sleep", "lock", "read"])
def test_a_signal_that_comes_just_before_a_wait_ends_it(stop, signum, wait):
    stop.hand_to(end)
    lock = threading.Lock()
    lock.acquire()
    out, into = os.pipe()
    waits = {
        "sleep": functools.partial(time.sleep, LIMIT_S),
        "lock": functools.partial(lock.acquire, True, LIMIT_S),
        "read": functools.partial(os.read, out, 1),
    }
    with pytest.raises(EndedError):
        lose(signum, waits[wait])
    assert (stop.signum, stop.count) == (signum, 1)
    os.close(out)
    os.close(into)


def test_another_thread_interrupts_the_main_thread_until_it_is_heard(stop):
    waits = threading.Event()
    thread = threading.Thread(target=lambda: waits.wait(LIMIT_S) and stop.interrupt_main_thread(end))
    thread.start()  # in the middle of which Python itself would take our error for one of its own

    def wait():
        waits.set()
        time.sleep(LIMIT_S)

    with pytest.raises(EndedError):
        wait()
    thread.join()
    assert stop.count == 0


def test_each_signal_is_counted_once_however_often_the_thread_is_nudged(stop):
    handed = []
    stop.hand_to(handed.append)
    for number in range(1, 20):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda number=number: stop.count >= number, "it is counted")
    assert handed == [signal.SIGTERM] * 19


def test_a_process_that_is_forked_meanwhile_ends_by_its_signals(stop):
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.write(into, b"x")
        for _ in range(int(LIMIT_S * 10)):
            time.sleep(0.1)
        os._exit(0)
    assert os.read(out, 1) == b"x"
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert stop.count == 0
    os.close(out)
    os.close(into)


def test_who_is_woken_by_signals_is_woken_still():
    out, into = os.pipe()
    os.set_blocking(into, False)
    before = signal.set_wakeup_fd(into)
    try:
        with StopRequests().handled():
            os.kill(os.getpid(), signal.SIGTERM)
            assert os.read(out, 1) == bytes([signal.SIGTERM])
        assert signal.set_wakeup_fd(before) == into
    finally:
        signal.set_wakeup_fd(before)
        os.close(out)
        os.close(into)
