"""Each kind of server does what it was asked to, and the answer is lost on the way: the write is recognised, or refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import StorageUnavailableError, StoreExistsError
from holdfast.persistence import layout
from holdfast.persistence.commit import commit
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.retry import RetryPolicy, retried
from holdfast.records import Manifest
from holdfast.stores import Store, open_store
from holdfast.testing.store import Recorder, put
from support.fixtures import ObjectServer
from support.s3_proxy import Fault, Proxy, running_proxy

SMALL, LARGE = 300_000, 20 << 20
QUICK = {"max_retries": "2", "retry_timeout": "60"}


@pytest.fixture
def proxy(object_server: ObjectServer) -> Iterator[Proxy]:
    with running_proxy(object_server.port) as proxy:
        yield proxy


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    return object_server.make_bucket()


@pytest.fixture
def store(object_server: ObjectServer, proxy: Proxy, bucket: str) -> Store:
    """Through the proxy; what the server does with conditions is known."""
    store = open_store(object_server.url(bucket, "run", port=proxy.port, **QUICK))
    store.prepare()
    return store


@pytest.fixture
def behind(object_server: ObjectServer, bucket: str) -> Store:
    """The same, past the proxy."""
    return open_store(object_server.url(bucket, "run"))


def _fault(store: Store, what: str) -> Fault:
    """What happens to one request, which Azure has other names for."""
    is_azure = store.url.startswith("az:")
    match what:
        case "write":
            return Fault("PUT", contains="file", loses_answer=True)
        case "cut write":
            return Fault("PUT", contains="file", cuts_request_at=100_000)
        case "look":
            return Fault("HEAD", contains="file", loses_answer=True)
        case "part":
            return Fault("PUT", contains="blockid=" if is_azure else "partNumber=2", loses_answer=True)
        case _:
            method, contains = ("PUT", "comp=blocklist") if is_azure else ("POST", "uploadId=")
            return Fault(method, contains=contains, loses_answer=True)


@pytest.mark.parametrize(
    ("what", "size_bytes"),
    [
        *((what, size_bytes) for what in ("write", "cut write") for size_bytes in (SMALL, LARGE)),
        *((what, LARGE) for what in ("look", "part", "completion")),
    ],
)
def test_a_file_arrives_whole(store, behind, proxy, tmp_path: Path, what: str, size_bytes: int):
    data = os.urandom(size_bytes)
    fault = proxy.fail(_fault(store, what))

    def upload() -> Recorder:
        recorder = Recorder()
        put(store, "c/file", tmp_path, data, hasher=recorder)
        return recorder

    recorder = retried(upload, "The upload", RetryPolicy(limit_s=30))
    assert fault.times == 0  # else nothing was lost
    assert behind.read("c/file") == data
    assert bytes(recorder.data) == data


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
def test_anothers_object_is_not_taken_for_ours(store, behind, proxy, tmp_path: Path, size_bytes: int):
    theirs = os.urandom(size_bytes)
    put(behind, "c/file", tmp_path, theirs)
    proxy.fail(Fault("PUT", loses_answer=True))
    with pytest.raises(StoreExistsError):
        put(store, "c/file", tmp_path, os.urandom(size_bytes))
    assert behind.read("c/file") == theirs


def test_a_commit_is_found_done(store, behind, proxy):
    manifest = Manifest(id="a" * 32, name="checkpoint_000001", report_index=1, epoch=1)
    proxy.fail(Fault("PUT", contains=layout.MANIFEST, loses_answer=True))
    assert commit(store, partial="checkpoint_000001", manifest=manifest, metadata=None).id == manifest.id
    found = read_manifest(behind.child("checkpoint_000001"))
    assert found is not None
    assert found.id == manifest.id


def test_a_deletion_is_done_when_it_is_repeated(store, behind, proxy):
    for number in range(20):
        behind.write(f"d/{number}", b"x")
    for method in ("POST", "DELETE"):
        proxy.fail(Fault(method, times=1, loses_answer=True))
    retried(lambda: store.delete_tree("d"), "The deletion", RetryPolicy(limit_s=30))
    assert list(behind.list(recursive=True)) == []


def test_what_does_not_arrive_leaves_nothing(store, behind, proxy, tmp_path: Path):
    for size_bytes in (SMALL, LARGE):
        proxy.fail(Fault("PUT", contains="file", times=-1, cuts_request_at=100_000))
        with pytest.raises(StorageUnavailableError):
            put(store, "c/file", tmp_path, os.urandom(size_bytes))
        proxy.heal()
        assert not behind.exists("c")
