"""Readers of files in a bucket that stay open, and what others need meanwhile."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings

import pytest

from holdfast.stores import open_store
from holdfast.stores.object_memory import budget
from support.s3_proxy import Fault, Proxy
from support.s3_server import S3Server
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("keys")
DATA = random.Random(1).randbytes(40 << 20)


def test_an_open_reader_that_is_idle_gives_its_memory_to_who_waits_and_reads_on(server: S3Server, bucket: str) -> None:
    store = open_store(server.url(bucket, "run"))
    store.write("large", DATA)
    with store.open_read("large") as file:
        read = file.read(12 << 20)  # from here on it is ahead of its reader
        assert not budget().try_take(budget().limit_bytes)
        with budget().hold(budget().limit_bytes):  # would wait for ever
            read += file.read(5)
        while piece := file.read(1 << 20):
            read += piece
        file.seek(3)
        assert file.read(4) == DATA[3:7]
    assert read == DATA
    with budget().hold(budget().limit_bytes):
        pass


def test_a_forked_child_closes_a_reader_that_its_parent_is_reading(server: S3Server, bucket: str, proxy: Proxy) -> None:
    open_store(server.url(bucket, "run")).write("large", DATA)
    file = open_store(server.url(bucket, "run", port=proxy.port)).open_read("large")
    let_go = threading.Event()
    proxy.fail(Fault("GET", "large", times=-1, waits_for=let_go))
    asked = len(proxy.requests)
    reading = threading.Thread(target=file.read)
    reading.start()
    try:
        wait_until(lambda: len(proxy.requests) > asked, "it is being read")
        with warnings.catch_warnings():  # that threads do not come along is what this is about
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(10)
                file.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        let_go.set()
        reading.join()
        file.close()
