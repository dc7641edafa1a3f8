"""Uploads in parts that nobody completes are given up by the next driver: those of checkpoints that were on their way, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import StorageUnavailableError
from holdfast.persistence import layout
from holdfast.stores import Store, open_store
from support.ceph import CephServer
from support.runs import open_run
from support.s3_proxy import Fault, Proxy, answer, running_proxy
from support.s3_server import S3Server

NAME = "ein Übungsname+&%"


@pytest.fixture(params=["ceph", "rclone"])
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def place(s3: S3Server) -> str:
    return s3.make_bucket()


@pytest.fixture
def through(s3: S3Server) -> Iterator[Proxy]:
    with running_proxy(s3.port) as proxy:
        yield proxy


def begin_upload(server: S3Server, bucket: str, path: str) -> str:
    """As a process that is killed leaves it: one part has come."""
    path = path.replace(" ", "%20").replace("Ü", "%C3%9C").replace("+", "%2B").replace("&", "%26")
    found = re.search(rb"<UploadId>(.*?)</UploadId>", server.request("POST", f"/{bucket}/{path}?uploads"))
    assert found is not None
    upload = found[1].decode()
    server.request("PUT", f"/{bucket}/{path}?partNumber=1&uploadId={upload}", bytes(5 << 20))
    return upload


def mark(store: Store, name: str) -> None:
    store.write(layout.pending_key(name), b"{}")


def test_those_of_checkpoints_on_their_way_are_given_up_and_no_others(s3: S3Server, place: str, tmp_path: Path) -> None:
    store = open_store(s3.url(place, "exp/run"))
    open_run(store).close()
    mark(store, "checkpoint_000007")
    for path in ("a", "b/c", NAME.replace("%", "")):
        begin_upload(s3, place, f"exp/run/checkpoint_000007/{path}")
    others = ["exp/run/checkpoint_0000070/a", "exp/run/mine", "exp/run2/checkpoint_000007/a"]
    for path in others:
        begin_upload(s3, place, path)
    open_run(store).close()
    assert s3.unfinished_uploads(place) == len(others)
    assert list(store.list(layout.PENDING)) == []


def test_a_server_that_does_not_say_is_asked_again_at_the_next_start(
    s3: S3Server, place: str, through: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3.url(place, "exp/run", port=through.port))
    open_run(store).close()
    mark(store, "checkpoint_000007")
    begin_upload(s3, place, "exp/run/checkpoint_000007/a")
    through.fail(Fault("GET", "uploads=", answers=answer(503, "ServiceUnavailable")))
    open_run(store).close()
    assert "the next start tries again" in caplog.text
    assert s3.unfinished_uploads(place) == 1
    open_run(store).close()
    assert s3.unfinished_uploads(place) == 0
    assert list(store.list(layout.PENDING)) == []


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented"), (405, "MethodNotAllowed")]
)
def test_a_server_that_does_not_do_it_holds_nothing_up(
    s3: S3Server, place: str, through: Proxy, status: int, code: str
) -> None:
    store = open_store(s3.url(place, "exp/run", port=through.port))
    open_run(store).close()
    mark(store, "checkpoint_000007")
    through.fail(Fault("GET", "uploads=", answers=answer(status, code)))
    open_run(store).close()
    assert list(store.list(layout.PENDING)) == []


def test_a_right_that_is_missing_holds_nothing_up(ceph: CephServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    bucket = ceph.make_bucket()
    wrong = open_store(
        ceph.url(bucket, "run"), options={"access_key_id": "nobody", "secret_access_key": "nothing-at-all"}
    )
    wrong.give_up_uploads("checkpoint_000001")
    lost = open_store("s3://bucket/run?endpoint_override=http://127.0.0.1:9&request_timeout=1")
    with pytest.raises(StorageUnavailableError, match="s3://bucket"):
        lost.give_up_uploads("checkpoint_000001")
