"""The driver's event loop."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future

import pytest

from holdfast.controller.reactor import Reactor


@pytest.fixture
def reactor():
    made = Reactor()
    yield made
    made.close()


def test_a_posted_call_wakes_the_loop_from_another_thread(reactor):
    done = []
    threading.Timer(0.01, lambda: reactor.post(lambda: done.append(threading.current_thread()))).start()
    reactor.run_until(lambda: bool(done))
    assert done == [threading.main_thread()]


def test_timers_run_in_order_and_can_be_cancelled(reactor):
    ran = []
    reactor.after(0.02, lambda: ran.append("late"))
    reactor.after(0.0, lambda: ran.append("early"))
    reactor.after(0.01, lambda: ran.append("never")).cancel()
    reactor.run_until(lambda: "late" in ran)
    assert ran == ["early", "late"]


def test_a_future_calls_back_in_the_loop(reactor):
    future: Future[int] = Future()
    got = []
    reactor.when_done(future, lambda done: got.append(done.result()))
    threading.Timer(0.01, future.set_result, (5,)).start()
    reactor.run_until(lambda: bool(got))
    assert got == [5]


def test_a_watched_descriptor_calls_until_it_is_forgotten(reactor):
    out, into = os.pipe()
    got = []

    def ready(_):
        got.append(os.read(out, 10))
        reactor.forget(out)

    reactor.watch(out, ready)
    os.write(into, b"x")
    reactor.run_until(lambda: bool(got))
    os.write(into, b"y")
    reactor.after(0.01, lambda: got.append(b"end"))
    reactor.run_until(lambda: b"end" in got)
    reactor.forget(out)
    assert got == [b"x", b"end"]
    os.close(out)
    os.close(into)


def test_thousands_of_posts_do_not_fill_the_wake_up_pipe(reactor):
    count = []
    for _ in range(200_000):
        reactor.post(lambda: count.append(1))
    reactor.run_until(lambda: len(count) == 200_000)


def test_a_post_after_the_end_is_no_error():
    reactor = Reactor()
    reactor.close()
    reactor.post(lambda: None)
