"""A line to a bucket that carries less than what is on its way at once, within the limit of a request."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.persistence.retry import RetryPolicy, retried
from holdfast.stores import Store, open_store
from holdfast.testing.store import Recorder, put
from support.s3_proxy import running_proxy
from support.s3_server import KEYS, S3Server, running_server

SIZE_BYTES = 12 << 20
# Half of what all of the file would need, and no second try below the one that is tested.
LIMITS = {"request_timeout": "1", "retry_timeout": "1"}
BYTES_PER_S = 6 << 20


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with running_server() as server:
        yield server


@contextmanager
def signs_of_life(store: Store) -> Iterator[None]:
    """Small records go and come beside the files, as from every driver."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.1):
            with contextlib.suppress(StorageError):
                store.write("sign", b"alive")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_files_go_both_ways_over_a_thin_line(server: S3Server, tmp_path: Path) -> None:
    data = os.urandom(SIZE_BYTES)
    bucket = server.make_bucket()
    behind = open_store(server.url(bucket, "run"))
    with running_proxy(server.port) as proxy:
        proxy.bytes_per_s = BYTES_PER_S
        # Two that know nothing of each other, by an option that says nothing: each has its first failure.
        one, other = (open_store(server.url(bucket, "run", port=proxy.port, max_retries=n, **LIMITS)) for n in "89")

        def upload() -> Recorder:
            recorder = Recorder()
            with signs_of_life(one):
                put(one, "file", tmp_path, data, hasher=recorder)
            return recorder

        def download() -> bytes:
            return b"".join(bytes(chunk) for chunk in other.chunks("file", SIZE_BYTES))

        recorder = retried(upload, "The upload", RetryPolicy(limit_s=20))
        assert behind.read("file") == data
        assert bytes(recorder.data) == data
        assert retried(download, "The download", RetryPolicy(limit_s=20)) == data
