"""Readers of files in a bucket that stay open, and what others need meanwhile."""

from __future__ import annotations

import random

import pytest

from holdfast.stores import open_store
from holdfast.stores.object_memory import budget
from support.s3_server import S3Server

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
