from __future__ import annotations

import threading

import pytest

from holdfast.persistence.reads import read_many
from holdfast.stores import open_store
from support.remote_like_store import RemoteLikeStore


def test_a_remote_store_is_asked_for_several_at_once_and_answers_in_order(tmp_path) -> None:
    together = threading.Barrier(16)

    def read(item: int) -> int:
        if item < 16:
            together.wait(30)  # breaks where fewer come at once
        return item * 2

    assert list(read_many(RemoteLikeStore(tmp_path), read, range(160))) == list(range(0, 320, 2))


def test_a_local_store_is_read_by_the_caller_itself_and_no_further_than_it_asks(tmp_path) -> None:
    seen = []

    def read(item: int) -> int:
        seen.append((item, threading.current_thread()))
        return item

    reading = read_many(open_store(tmp_path), read, range(100))
    assert next(reading) == 0
    assert seen == [(0, threading.current_thread())]


def test_what_a_read_raises_comes_at_its_turn(tmp_path) -> None:
    def read(item: int) -> int:
        if item == 2:
            raise OSError("said by the test")
        return item

    reading = read_many(RemoteLikeStore(tmp_path), read, range(100))
    assert [next(reading), next(reading)] == [0, 1]
    with pytest.raises(OSError, match="said by the test"):
        next(reading)


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_read_takes_no_threads(tmp_path, count: int) -> None:
    threads = list(read_many(RemoteLikeStore(tmp_path), lambda _: threading.current_thread(), range(count)))
    assert threads == [threading.current_thread()] * count
