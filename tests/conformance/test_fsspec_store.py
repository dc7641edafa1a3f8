from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.stores.base import Store
from holdfast.stores.fsspec_store import FsspecStore
from holdfast.testing.store import StoreContract
from support.s3_server import KEYS, S3Server, running_server

pytest.importorskip("fsspec", reason='needs fsspec, which is not installed: pip install "fsspec"')


class TestMemory(StoreContract):
    def make_store(self, tmp_path: Path) -> Store:
        store = FsspecStore(f"memory://{secrets.token_hex(6)}/some/directory")
        assert store.capabilities.exclusive_create
        return store


class TestDirectoryOfALocalFileSystem(StoreContract):
    def make_store(self, tmp_path: Path) -> Store:
        from fsspec.implementations.dirfs import DirFileSystem
        from fsspec.implementations.local import LocalFileSystem

        (tmp_path / "top").mkdir()
        store = FsspecStore("some/directory", DirFileSystem(path=str(tmp_path / "top"), fs=LocalFileSystem()))
        assert store.capabilities.exclusive_create
        return store


class TestFileSystemOfArrow(StoreContract):
    def make_store(self, tmp_path: Path) -> Store:
        fs = pytest.importorskip("pyarrow.fs", reason='needs pyarrow, which is not installed: pip install "pyarrow"')
        store = FsspecStore(str(tmp_path / "store"), fs.LocalFileSystem())
        assert not store.capabilities.exclusive_create
        assert store.capabilities.whole_replacement
        return store


class TestFileSystemThatRefusesToMoveOntoSomething(StoreContract):
    def make_store(self, tmp_path: Path) -> Store:
        from support.file_systems import RefusingFileSystem

        store = FsspecStore(str(tmp_path / "store"), RefusingFileSystem())
        store.prepare()
        assert store.capabilities.exclusive_create
        assert not store.capabilities.whole_replacement
        return store


class TestFileSystemThatPromisesNothing(StoreContract):
    def make_store(self, tmp_path: Path) -> Store:
        from support.file_systems import BareFileSystem

        store = FsspecStore(str(tmp_path / "store"), BareFileSystem())
        assert not store.capabilities.exclusive_create
        assert not store.capabilities.whole_replacement
        return store


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason='needs s3fs, which is not installed: pip install "s3fs"')
    with running_server() as server:
        yield server


class TestBucketThroughS3fs(StoreContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)

    def make_store(self, tmp_path: Path) -> Store:
        import s3fs

        filesystem = s3fs.S3FileSystem(
            key=KEYS["AWS_ACCESS_KEY_ID"],
            secret=KEYS["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.server.endpoint,
            client_kwargs={"region_name": "us-east-1"},
        )
        store = FsspecStore(f"{self.server.make_bucket()}/some/prefix", filesystem)
        assert store.capabilities.exclusive_create
        return store
