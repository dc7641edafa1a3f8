"""Many small files go to a bucket without one waiting for another; what was begun is awaited, whatever becomes of the rest."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from holdfast.errors import ShardModifiedError, StorageAccessError
from holdfast.persistence.staging import stage
from holdfast.persistence.upload import Uploader
from holdfast.stores import open_store
from holdfast.stores.base import Store
from support.s3_proxy import Fault, Proxy, answer
from support.waiting import wait_until

NUM = 150
DENIED = answer(403, "AccessDenied")


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    for number in range(NUM):
        (directory / f"f{number:03d}").write_bytes(b"%d" % number * number)
    return directory


def test_all_are_there_and_more_were_on_their_way_than_there_are_threads(
    store: Store, proxy: Proxy, source: Path
) -> None:
    hold = threading.Event()
    proxy.fail(Fault("PUT", "run/f", times=-1, waits_for=hold))
    uploader = Uploader(2, store=store)
    try:
        future = uploader.store_shard(stage(source, 0), store, "run")
        wait_until(lambda: proxy.count("PUT", "run/f") >= 16, "a thread has begun several")
        hold.set()
        receipt = future.result(60)
    finally:
        hold.set()
        uploader.close()
    assert [file.path for file in receipt.files] == sorted(path.name for path in source.iterdir())
    assert all(file.digest for file in receipt.files)
    assert {entry.key: entry.size_bytes for entry in store.list("run")} == {
        f"run/{path.name}": path.stat().st_size for path in source.iterdir()
    }


def test_what_was_begun_has_ended_when_the_upload_has_failed(store: Store, proxy: Proxy, source: Path) -> None:
    hold = threading.Event()
    held = proxy.fail(Fault("PUT", "run/f000", waits_for=hold))
    proxy.fail(Fault("PUT", "run/f005", times=-1, answers=DENIED))
    uploader = Uploader(2, store=store)
    try:
        future = uploader.store_shard(stage(source, 0), store, "run")
        wait_until(lambda: proxy.count("PUT", "run/f005") == 1, "one is refused")
        assert not future.done()
        hold.set()
        assert isinstance(future.exception(60), StorageAccessError)
        assert held.passed_on.is_set()
    finally:
        hold.set()
        uploader.close()
    assert store.exists("run/f000")
    asked = len(proxy.requests)
    assert proxy.count("PUT", "run/f") < NUM
    assert len(proxy.requests) == asked


def test_one_that_changes_while_it_is_on_its_way_fails_the_upload(store: Store, proxy: Proxy, source: Path) -> None:
    hold = threading.Event()
    proxy.fail(Fault("PUT", "run/f100", waits_for=hold))
    uploader = Uploader(2, store=store)
    try:
        future = uploader.store_shard(stage(source, 0), store, "run")
        wait_until(lambda: proxy.count("PUT", "run/f100") == 1, "it is on its way")
        (source / "f100").write_bytes(b"other")
        hold.set()
        error = future.exception(60)
        assert isinstance(error, ShardModifiedError)
        assert "f100" in str(error)
    finally:
        hold.set()
        uploader.close()


@pytest.mark.parametrize("lost", ["answers", pytest.param("requests", marks=pytest.mark.slow)])
def test_answers_that_are_lost_are_found_out_about(store: Store, proxy: Proxy, source: Path, lost: str) -> None:
    if lost == "answers":
        proxy.fail(Fault("PUT", "run/f0", times=5, loses_answer=True))
    else:
        proxy.fail(Fault("PUT", "run/f0", times=5, cuts_request_at=1))
    uploader = Uploader(2, store=store)
    try:
        receipt = uploader.store_shard(stage(source, 0), store, "run").result(60)
    finally:
        uploader.close()
    assert all(file.digest for file in receipt.files)
    assert len(list(store.list("run"))) == NUM
