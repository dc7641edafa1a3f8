"""What networks and servers do to a write or a read, and what must come of it: all of the bytes, or an error that says why."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.errors import (
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    StoreExistsError,
    StoreNotFoundError,
)
from holdfast.persistence import layout
from holdfast.persistence.commit import commit
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.retry import RetryPolicy, retried
from holdfast.records import Manifest
from holdfast.stores import Store, open_store
from holdfast.testing.store import Recorder, put
from support.s3_proxy import SLOW_DOWN, Fault, Proxy, answer, running_proxy
from support.s3_server import KEYS, S3Server, running_server
from support.waiting import wait_until

# So few tries that a test can wait for them.
QUICK = {"max_retries": "2", "retry_timeout": "30"}
SMALL, LARGE = 300_000, 20 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    with running_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.make_bucket()


@pytest.fixture
def store(server: S3Server, proxy: Proxy, bucket: str) -> Store:
    """Through the proxy."""
    return open_store(server.url(bucket, "run", port=proxy.port, **QUICK))


@pytest.fixture
def behind(server: S3Server, bucket: str) -> Store:
    """The same, past the proxy."""
    return open_store(server.url(bucket, "run"))


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", times=2, answers=SLOW_DOWN),
        Fault("PUT", cuts_request_at=100_000),
        Fault("PUT", loses_answer=True),
        Fault("POST", loses_answer=True),
        Fault("POST", times=2, answers=SLOW_DOWN),
        Fault("HEAD", times=2, answers=SLOW_DOWN),
    ],
    ids=["slow-down", "cut-request", "lost-answer", "lost-post-answer", "slow-post", "slow-head"],
)
def test_a_file_arrives_whole_through_what_passes(
    store: Store, behind: Store, proxy: Proxy, tmp_path: Path, fault: Fault, size_bytes: int
) -> None:
    data = os.urandom(size_bytes)
    proxy.fail(Fault(**vars(fault)))

    def upload() -> Recorder:
        recorder = Recorder()
        put(store, "c/file", tmp_path, data, hasher=recorder)
        return recorder

    recorder = retried(upload, "The upload", RetryPolicy(limit_s=30))
    assert behind.read("c/file") == data
    assert bytes(recorder.data) == data


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("PUT", times=-1, answers=SLOW_DOWN), StorageUnavailableError),
        (Fault("PUT", times=-1, cuts_request_at=100_000), StorageUnavailableError),
        (Fault("PUT", times=-1, stalls=True), StorageUnavailableError),
        (Fault("PUT", times=-1, answers=answer(403, "ExpiredToken")), StorageAccessError),
        (Fault("PUT", times=-1, answers=answer(404, "NoSuchBucket")), StorageAccessError),
    ],
    ids=["slow-down", "cut-request", "stall", "expired", "no-bucket"],
)
def test_what_does_not_arrive_is_an_error_and_leaves_nothing(
    server: S3Server, behind: Store, bucket: str, proxy: Proxy, tmp_path: Path,
    fault: Fault, kind: type[StorageError], size_bytes: int,
) -> None:  # fmt: skip
    limits = {**QUICK, "request_timeout": "2"} if fault.stalls else QUICK
    store = open_store(server.url(bucket, "run", port=proxy.port, **limits))
    proxy.fail(Fault(**vars(fault)))
    began_s = time.monotonic()
    with pytest.raises(kind) as caught:
        put(store, "c/file", tmp_path, os.urandom(size_bytes))
    assert caught.value.may_pass is (kind is StorageUnavailableError)
    assert time.monotonic() - began_s < 40
    assert not behind.exists("c")
    assert server.unfinished_uploads(bucket) == 0


@pytest.mark.parametrize(("step", "code"), [("partNumber=3", "ExpiredToken"), ("uploadId", "AccessDenied")])
def test_an_upload_that_fails_at_its_end_is_no_success(
    server: S3Server, store: Store, behind: Store, bucket: str, proxy: Proxy, tmp_path: Path, step: str, code: str
) -> None:
    """The peers' client tells of no failure here."""
    proxy.fail(Fault("PUT" if "part" in step else "POST", contains=step, times=-1, answers=answer(403, code)))
    with pytest.raises(StorageAccessError):
        put(store, "c/file", tmp_path, os.urandom(LARGE))
    assert not behind.exists("c")
    assert server.unfinished_uploads(bucket) == 0


def test_a_token_that_expires_while_a_file_goes_up_is_told_as_that(store: Store, proxy: Proxy, tmp_path: Path) -> None:
    """Also the look at what became of it is refused, and that has no reason with it."""
    proxy.fail(Fault("PUT", contains="partNumber=3", times=-1, answers=answer(403, "ExpiredToken")))
    # After the one that comes before the upload.
    proxy.fail(Fault("HEAD", contains="c/file"))
    proxy.fail(
        Fault("HEAD", contains="c/file", times=-1, answers=b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    )
    with pytest.raises(StorageAccessError, match="the session token has expired"):
        put(store, "c/file", tmp_path, os.urandom(LARGE))


def test_a_write_that_is_confirmed_and_not_there_is_no_success(store: Store, proxy: Proxy, tmp_path: Path) -> None:
    proxy.fail(Fault("PUT", answers=b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'))
    put(store, "c/file", tmp_path, b"data")
    with pytest.raises(StorageUnavailableError, match="now does not list it"):
        store.confirm("c", {"file": 4})


def test_a_store_that_comes_back_is_tried_again(
    store: Store, behind: Store, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fail(Fault("PUT", times=7, answers=SLOW_DOWN))
    retried(lambda: put(store, "c/file", tmp_path, b"data"), "The upload", RetryPolicy(limit_s=30))
    assert behind.read("c/file") == b"data"
    assert "tried again" in caplog.text


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
def test_a_lost_answer_never_takes_anothers_object_for_ours(
    store: Store, behind: Store, proxy: Proxy, tmp_path: Path, size_bytes: int
) -> None:
    theirs = os.urandom(size_bytes)
    put(behind, "c/file", tmp_path, theirs)
    proxy.fail(Fault("PUT", loses_answer=True))
    with pytest.raises(StoreExistsError):
        put(store, "c/file", tmp_path, os.urandom(size_bytes))
    assert behind.read("c/file") == theirs


def test_a_create_whose_answer_was_lost_says_exists(store: Store, behind: Store, proxy: Proxy) -> None:
    """The caller compares: a commit below."""
    proxy.fail(Fault("PUT", loses_answer=True))
    with pytest.raises(StoreExistsError):
        store.create("record", b"ours")
    assert behind.read("record") == b"ours"


def test_a_commit_whose_answer_was_lost_is_found_done(store: Store, behind: Store, proxy: Proxy) -> None:
    manifest = Manifest(id="a" * 32, name="checkpoint_000001", report_index=1, epoch=1)
    proxy.fail(Fault("PUT", contains=layout.MANIFEST, loses_answer=True))
    assert commit(store, partial="checkpoint_000001", manifest=manifest, metadata=None).id == manifest.id
    found = read_manifest(behind.child("checkpoint_000001"))
    assert found is not None
    assert found.id == manifest.id


@pytest.mark.parametrize("cut_at", [0, 1, 70_000, 1 << 20])
def test_a_body_that_breaks_off_is_read_to_its_end(store: Store, behind: Store, proxy: Proxy, cut_at: int) -> None:
    data = os.urandom(9 << 20)
    behind.write("file", data)
    proxy.fail(Fault("GET", contains="run/file", times=2, cuts_answer_at=cut_at))
    with store.open_read("file") as file:
        assert file.read() == data


def test_a_body_that_always_breaks_off_is_never_taken_for_a_file(store: Store, behind: Store, proxy: Proxy) -> None:
    behind.write("file", os.urandom(3 << 20))
    proxy.fail(Fault("GET", contains="run/file", times=-1, cuts_answer_at=1000))
    for read in (lambda: store.read("file"), lambda: store.open_read("file").read()):
        with pytest.raises(StorageUnavailableError):
            read()


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(store: Store, behind: Store) -> None:
    behind.write("file", b"a" * (5 << 20))
    with store.open_read("file") as file:
        assert file.read(10) == b"a" * 10
        behind.write("file", b"b" * (5 << 20))
        with pytest.raises(StorageError, match="replaced"):
            file.read()


def test_a_server_that_ignores_conditions_is_found_out_and_told_of_once(
    store: Store, proxy: Proxy, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store.prepare()
    assert store.capabilities.exclusive_create
    proxy.fail(Fault("PUT", times=-1, drops_header="if-none-match"))
    with caplog.at_level(logging.WARNING, "holdfast"):
        store.prepare()
        store.child("deeper").prepare()
    assert not store.capabilities.exclusive_create
    assert not store.child("deeper").capabilities.exclusive_create
    assert len([each for each in caplog.records if "two drivers" in each.getMessage()]) == 1
    store.create("record", b"1")
    with pytest.raises(StoreExistsError):
        store.create("record", b"2")
    put(store, "file", tmp_path, b"1")
    with pytest.raises(StoreExistsError):
        put(store, "file", tmp_path, b"2")
    assert store.read("record") == store.read("file") == b"1"


def test_a_listing_goes_over_all_its_pages(server: S3Server, behind: Store) -> None:
    for number in range(1205):
        behind.write(f"d/{number % 3}/{number}", b"")
    assert sum(1 for _ in behind.list("d", recursive=True)) == 1205
    assert {entry.key for entry in behind.list("d")} == {"d/0", "d/1", "d/2"}
    behind.delete_tree("d")
    assert not behind.exists("d")


def test_marks_of_directories_are_no_files(server: S3Server, bucket: str, behind: Store) -> None:
    for name in ("run/d/", "run/d/e/", "run/"):
        server.request("PUT", f"/{bucket}/{name}", b"")
    behind.write("d/e/file", b"1")
    behind.write("d/empty", b"")
    assert {entry.key for entry in behind.list(recursive=True)} == {"d/e/file", "d/empty"}
    assert {(entry.key, entry.is_directory) for entry in behind.list("d")} == {("d/e", True), ("d/empty", False)}
    assert {(entry.key, entry.is_directory) for entry in behind.list()} == {("d", True)}


def test_any_reading_of_a_file_gives_its_bytes(behind: Store) -> None:
    import io
    import random

    data = random.Random(1).randbytes(21 << 20)
    behind.write("file", data)
    model = io.BytesIO(data)
    choose = random.Random(2)
    with behind.open_read("file") as file:
        for _ in range(60):
            if choose.random() < 0.5:
                position = choose.choice([0, len(data), choose.randrange(len(data)), len(data) + 5])
                assert file.seek(position) == model.seek(position)
            size = choose.choice([0, 1, 1000, 1 << 20, 5 << 20])
            if choose.random() < 0.3:
                mine, theirs = bytearray(size), bytearray(size)
                assert file.readinto(mine) == model.readinto(theirs)
                assert mine == theirs
            else:
                assert file.read(size) == model.read(size)
            assert file.tell() == model.tell()
        file.seek(0)
        model.seek(0)
        assert file.read() == data
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    behind.write("lines", b"one\ntwo\n")
    with behind.open_read("lines") as file:
        assert list(file) == [b"one\n", b"two\n"]
    behind.write("empty", b"")
    with behind.open_read("empty") as file:
        assert file.read() == b""
    with pytest.raises(StoreNotFoundError):
        behind.open_read("nothing")


def _assert_all_given_back(call: Callable[[], object]) -> None:
    from holdfast.stores.object_memory import budget

    call()
    wait_until(lambda: budget().try_take(budget().limit_bytes), "no memory of the budget is taken")
    budget().give_back(budget().limit_bytes)


def test_memory_that_was_taken_is_given_back(behind: Store, store: Store, proxy: Proxy, tmp_path: Path) -> None:
    behind.write("file", bytes(40 << 20))

    def read_a_part() -> None:
        with store.open_read("file") as file:
            for _ in range(6):
                file.read(1 << 20)

    def fail() -> None:
        proxy.fail(Fault("PUT", times=-1, answers=answer(403, "ExpiredToken")))
        with pytest.raises(StorageAccessError):
            put(store, "big", tmp_path, bytes(LARGE))
        proxy.heal()

    def break_off() -> None:
        with store.open_read("file") as file:
            file.read(3 << 20)
            proxy.fail(Fault("GET", times=-1, answers=answer(403, "ExpiredToken")))
            with pytest.raises(StorageAccessError):
                file.read()
        proxy.heal()

    for call in (read_a_part, fail, break_off):
        _assert_all_given_back(call)


def test_a_bug_of_the_library_is_a_storage_error(store: Store, proxy: Proxy) -> None:
    # A server that answers for an object that nobody asked for makes it panic, which is no Exception.
    proxy.fail(Fault("POST", answers=answer(200, "AccessDenied", key="elsewhere")))
    with pytest.raises(StorageError):
        store.delete("file")
