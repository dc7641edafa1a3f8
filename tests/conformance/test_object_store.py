from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.stores import open_store
from holdfast.stores.base import Store
from holdfast.testing.store import StoreContract
from support.s3_server import KEYS, S3Server, running_rclone, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        yield server


class TestObjectStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)

    def make_store(self, tmp_path: Path) -> Store:
        return open_store(self.server.url(self.server.make_bucket(), "some/prefix"))


_BUCKETS = [f"bucket-{number}" for number in range(100)]


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Iterator[str]]]:
    with running_rclone(tmp_path_factory.mktemp("rclone"), _BUCKETS) as server:
        yield server, iter(_BUCKETS)


class TestObjectStoreThatIgnoresConditions(StoreContract):
    @pytest.fixture(autouse=True)
    def _server(self, rclone: tuple[S3Server, Iterator[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.buckets = rclone
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)

    def make_store(self, tmp_path: Path) -> Store:
        store = open_store(self.server.url(next(self.buckets), "some/prefix"))
        store.prepare()
        assert not store.capabilities.exclusive_create
        return store
