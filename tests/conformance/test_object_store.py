from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.stores import open_store
from holdfast.stores.base import Store
from holdfast.testing.store import StoreContract
from support.ceph import CephServer
from support.s3_server import KEYS, S3Server, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        yield server


class BucketContract(StoreContract):
    @pytest.fixture(autouse=True)
    def _keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)

    def store_on(self, server: S3Server) -> Store:
        return open_store(server.url(server.make_bucket(), "some/prefix"))


class TestMoto(BucketContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: S3Server) -> None:
        self.server = server

    def make_store(self, tmp_path: Path) -> Store:
        return self.store_on(self.server)


class TestCeph(BucketContract):
    @pytest.fixture(autouse=True)
    def _server(self, ceph: CephServer) -> None:
        self.server = ceph

    def make_store(self, tmp_path: Path) -> Store:
        store = self.store_on(self.server)
        store.prepare()
        assert store.capabilities.exclusive_create
        return store


class TestRcloneWhichIgnoresConditions(BucketContract):
    @pytest.fixture(autouse=True)
    def _server(self, rclone: S3Server) -> None:
        self.server = rclone

    def make_store(self, tmp_path: Path) -> Store:
        store = self.store_on(self.server)
        store.prepare()
        assert not store.capabilities.exclusive_create
        return store
