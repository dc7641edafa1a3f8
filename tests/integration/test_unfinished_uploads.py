"""Uploads in parts that nobody completes are given up by the next driver: those of checkpoints that were on their way, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import StorageAccessError, StorageUnavailableError
from holdfast.persistence import layout
from holdfast.stores import Store, object_leftovers, open_store
from holdfast.stores.object_client import client_of
from holdfast.stores.object_url import parse_url
from support.ceph import CephServer
from support.runs import open_run, report
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


def test_a_server_that_does_not_say_is_asked_again_at_the_next_start_and_holds_up_nothing_else(
    s3: S3Server, place: str, through: Proxy, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store = open_store(s3.url(place, "exp/run", port=through.port))
    open_run(store).close()
    mark(store, "mine")
    store.write("mine/half", b"of a dead driver")
    begin_upload(s3, place, "exp/run/mine/a")
    through.fail(Fault("GET", "uploads=", times=-1, answers=answer(503, "ServiceUnavailable")))
    writer = open_run(store)
    assert "status 503" in caplog.text
    assert "the next start tries again" in caplog.text
    report(writer, tmp_path, {"model": b"whole"}, name="mine")
    writer.close()
    assert {entry.key for entry in store.list("mine")} == {"mine/model", layout.manifest_key("mine")}
    mark(store, "checkpoint_000007")
    begin_upload(s3, place, "exp/run/checkpoint_000007/a")
    open_run(store).close()
    assert s3.unfinished_uploads(place) == 2
    through.heal()
    open_run(store).close()
    assert s3.unfinished_uploads(place) == 1  # that of a name that was used again since: of it nobody knows any more
    assert list(store.list(layout.PENDING)) == []


def test_an_upload_that_the_server_lists_for_ever_is_given_up_once(s3: S3Server, place: str, through: Proxy) -> None:
    store = open_store(s3.url(place, "exp/run", port=through.port))
    begin_upload(s3, place, "exp/run/checkpoint_000007/a")
    through.fail(Fault("DELETE", "uploadId=", times=-1, answers=answer(404, "NoSuchUpload")))
    store.give_up_uploads("checkpoint_000007")
    assert through.count("DELETE", "uploadId=") == 1


def test_what_signs_a_request_is_not_sent_to_another_host(s3: S3Server, place: str, through: Proxy) -> None:
    with running_proxy(s3.port) as elsewhere:
        head = f"HTTP/1.1 307 X\r\nLocation: http://localhost:{elsewhere.port}/{place}?uploads\r\nContent-Length: 0\r\n"
        through.fail(Fault("GET", "uploads=", times=-1, answers=f"{head}Connection: close\r\n\r\n".encode()))
        open_store(s3.url(place, "exp/run", port=through.port)).give_up_uploads("checkpoint_000007")
        assert through.count("GET", "uploads=") == 1
        assert elsewhere.requests == []


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


def test_a_profile_names_its_region_and_one_that_fails_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("boto3")
    for name in (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config"
    config.write_text(
        "[profile here]\nregion = eu-west-1\naws_access_key_id = key\naws_secret_access_key = secret\n"
        "[profile broken]\ncredential_process = false\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    found = object_leftovers._Bucket.of(client_of(parse_url("s3://bucket/run?profile=here")[0]))
    assert found is not None
    assert (found.url, found.region) == ("https://s3.eu-west-1.amazonaws.com/bucket", "eu-west-1")
    with pytest.raises(StorageAccessError, match="s3://bucket"):
        open_store("s3://bucket/run?profile=broken").give_up_uploads("checkpoint_000007")
