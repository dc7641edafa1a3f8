from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.stores import open_store
from holdfast.stores.base import Store
from holdfast.testing.store import StoreContract
from support.azurite import AzureServer
from support.ceph import CephServer
from support.gcs_server import GoogleServer
from support.s3_server import S3Server


class BucketContract(StoreContract):
    server: S3Server | AzureServer | GoogleServer
    is_exclusive = True

    @pytest.fixture(autouse=True)
    def _environment(self, _server: None, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.server.environment.items():
            monkeypatch.setenv(name, value)

    def new_url(self) -> str:
        return self.server.url(self.server.make_bucket(), "some/prefix")

    def make_store(self, tmp_path: Path) -> Store:
        store = open_store(self.new_url())
        store.prepare()
        assert store.capabilities.exclusive_create is self.is_exclusive
        return store


class TestMoto(BucketContract):
    @pytest.fixture
    def _server(self, server: S3Server) -> None:
        self.server = server


class TestCeph(BucketContract):
    @pytest.fixture
    def _server(self, ceph: CephServer) -> None:
        self.server = ceph


class TestRclone(BucketContract):
    is_exclusive = False  # it ignores conditions

    @pytest.fixture
    def _server(self, rclone: S3Server) -> None:
        self.server = rclone


class TestAzurite(BucketContract):
    @pytest.fixture
    def _server(self, azurite: AzureServer) -> None:
        self.server = azurite


class TestAzuriteAsDataLake(BucketContract):
    @pytest.fixture
    def _server(self, azurite: AzureServer) -> None:
        self.azurite = self.server = azurite

    def new_url(self) -> str:
        return self.azurite.url_of_data_lake(self.azurite.make_bucket(), "some/prefix")


class TestGoogle(BucketContract):
    @pytest.fixture
    def _server(self, google: GoogleServer) -> None:
        self.server = google
