"""A server that answers for the whole object whatever part of it is asked for: files are read from there, too."""

from __future__ import annotations

import random

import pytest

from holdfast.errors import StorageError, StorageUnavailableError, StoreNotFoundError
from holdfast.stores import Store, open_store
from support.s3_proxy import Fault, Proxy
from support.s3_server import S3Server

DATA = random.Random(1).randbytes(9 << 20)


@pytest.fixture
def store(server: S3Server, bucket: str, proxy: Proxy) -> Store:
    """With one large file and a small one."""
    proxy.fail(Fault("GET", times=-1, drops_header="range"))
    store = open_store(server.url(bucket, "run", port=proxy.port))
    store.write("large", DATA)
    store.write("small", b"0123456789")
    return store


def test_a_file_is_read_in_one_request_and_from_anywhere(store: Store, proxy: Proxy) -> None:
    with store.open_read("large") as file:
        first = proxy.count("GET", "/run/large")
        pieces = [file.read(1000), file.read(5_000_000), file.read()]
        assert proxy.count("GET", "/run/large") == first
        assert b"".join(pieces) == DATA
        for position in (3_000_000, 8_000_000, 0, len(DATA) - 1):
            file.seek(position)
            assert file.read(2_000_000) == DATA[position : position + 2_000_000]
    # What the server does is known by now: no request is wasted on a range.
    before = len(proxy.requests)
    with store.open_read("small") as file:
        assert file.read() == b"0123456789"
    assert len(proxy.requests) == before + 1
    with pytest.raises(StoreNotFoundError):
        store.open_read("nothing")


def test_a_body_that_breaks_off_is_never_taken_for_a_file(store: Store, proxy: Proxy) -> None:
    assert store.open_read("large").read(10) == DATA[:10]
    proxy.heal()
    proxy.fail(Fault("GET", contains="/run/large", times=-1, drops_header="range", cuts_answer_at=5_000_000))
    with pytest.raises(StorageUnavailableError), store.open_read("large") as file:
        file.read()
    proxy.heal()
    proxy.fail(Fault("GET", times=-1, drops_header="range"))
    with store.open_read("large") as file:
        assert file.read() == DATA


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(store: Store) -> None:
    with store.open_read("large") as file:
        file.seek(5 << 20)
        assert file.read(10) == DATA[5 << 20 :][:10]
        store.write("large", bytes(len(DATA)))
        file.seek(0)
        with pytest.raises(StorageError, match="replaced"):
            file.read(10)
