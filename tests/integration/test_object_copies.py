"""Files that did not change are copied by the store, and never one that is not what was reported; what arrives late finds its place."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import holdfast as train
from holdfast.persistence import layout
from holdfast.persistence.checkpoint_writer import CheckpointWriter
from holdfast.persistence.staging import stage
from holdfast.persistence.writer import RunWriter
from holdfast.stores import Store, open_store
from holdfast.stores.object_store import ObjectStore
from holdfast.testing.store import put
from support.runs import open_run, report, write_files
from support.s3_proxy import Fault, Proxy
from support.s3_server import S3Server
from support.waiting import wait_until

# Some seconds, were the machine not busy; what is not broken off takes a minute.
SOON_S = 30.0


pytestmark = pytest.mark.usefixtures("keys")


@pytest.fixture
def store(server: S3Server, proxy: Proxy, bucket: str) -> Store:
    return open_store(server.url(bucket, "run", port=proxy.port))


def test_files_that_did_not_change_are_copied_by_the_store(
    server: S3Server, store: Store, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    frozen, changing = os.urandom(12 << 20), os.urandom(1 << 20)

    def files(step: int) -> dict[str, bytes]:
        return {"frozen": frozen, "small": b"x" * 1000, "changing": changing + bytes([step])}

    run = open_run(store)
    try:
        for step in range(3):
            begin = len(proxy.requests)
            report(run, tmp_path, files(step))
            sent = [line.split()[0] for line in proxy.requests[begin:] if "/frozen" in line]
            if step:
                assert sent == ["HEAD", "HEAD", "PUT"]
            else:
                assert len(sent) > 2  # a look, and an upload in parts
    finally:
        run.close()
    found = train.Run(server.url(bucket, "run"))
    assert len(found.checkpoints) == 3
    assert not any(found.verify().values())
    with found.checkpoints[2].checkpoint.as_directory() as directory:
        assert Path(directory, "frozen").read_bytes() == frozen
        assert Path(directory, "changing").read_bytes() == changing + b"\2"


def test_a_copy_that_fails_is_sent(store: Store, proxy: Proxy, tmp_path: Path) -> None:
    frozen = {"frozen": os.urandom(2 << 20)}
    run = open_run(store)
    try:
        report(run, tmp_path, frozen)
        refused = proxy.fail(
            Fault(
                "PUT",
                "x-amz-copy-source",
                times=-1,
                answers=b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            )
        )
        report(run, tmp_path, frozen)
        assert refused.times < -1
    finally:
        run.close()
    with run.store_of("checkpoint_000001").open_read("frozen") as file:
        assert file.read() == frozen["frozen"]


def test_what_was_written_over_is_not_copied(store: Store, tmp_path: Path) -> None:
    frozen = {"frozen": os.urandom(2 << 20)}
    run = open_run(store)
    try:
        report(run, tmp_path, frozen)
        store.write("checkpoint_000001/frozen", os.urandom(2 << 20))
        report(run, tmp_path, frozen)
    finally:
        run.close()
    with run.store_of("checkpoint_000002").open_read("frozen") as file:
        assert file.read() == frozen["frozen"]


def test_a_copy_never_lands_on_what_another_driver_has_stored(
    store: Store, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that was stopped for a while goes on, and has been replaced."""
    frozen = {"frozen": os.urandom(2 << 20)}
    theirs = os.urandom(2 << 20)
    run = open_run(store)
    copy = ObjectStore.copy

    def late(self: ObjectStore, source: str, target: str, size_bytes: int, tag: str) -> bool:
        put(store, target, tmp_path, theirs)
        return copy(self, source, target, size_bytes, tag)

    try:
        report(run, tmp_path, frozen)
        monkeypatch.setattr(ObjectStore, "copy", late)
        with pytest.raises(train.CheckpointExistsError, match="another program wrote"):
            report(run, tmp_path, frozen)
    finally:
        run.close()


@pytest.mark.parametrize("answers", [b"HTTP/1.1 501 Not Implemented", b"HTTP/1.1 500 Internal Server Error"])
def test_a_strangers_object_is_not_taken_for_a_copy(
    server: S3Server, store: Store, proxy: Proxy, bucket: str, tmp_path: Path, answers: bytes
) -> None:
    frozen = {"frozen": os.urandom(2 << 20)}
    behind = open_store(server.url(bucket, "run"))
    run = open_run(open_store(server.url(bucket, "run", port=proxy.port, max_retries="1")))

    def strange(_: bytes) -> bytes:
        behind.write("checkpoint_000002/frozen", os.urandom(2 << 20))
        return answers + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    try:
        report(run, tmp_path, frozen)
        proxy.fail(Fault("PUT", "x-amz-copy-source", times=-1, answers=strange))
        with pytest.raises(train.CheckpointExistsError, match="another program wrote"):
            report(run, tmp_path, frozen)
    finally:
        run.close()


def test_a_lost_answer_to_a_copy_is_no_failure(store: Store, proxy: Proxy, tmp_path: Path) -> None:
    frozen = {"frozen": os.urandom(2 << 20)}
    run = open_run(store)
    try:
        report(run, tmp_path, frozen)
        lost = proxy.fail(Fault("PUT", "x-amz-copy-source", loses_answer=True))
        report(run, tmp_path, frozen)
        assert lost.times == 0
        assert len(run.checkpoints()) == 2
    finally:
        run.close()


def test_a_copy_of_what_retention_has_let_go_of_meanwhile_is_not_believed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name may stand for another checkpoint by then."""
    frozen = {"frozen": os.urandom(2 << 20)}
    run = open_run(store)
    copy = ObjectStore.copy

    def late(self: ObjectStore, source: str, target: str, size_bytes: int, tag: str) -> bool:
        run._ledger.drop(run.checkpoints()[0])
        return copy(self, source, target, size_bytes, tag)

    try:
        report(run, tmp_path, frozen)
        monkeypatch.setattr(ObjectStore, "copy", late)
        report(run, tmp_path, frozen, index=2)
    finally:
        run.close()
    with run.store_of("checkpoint_000002").open_read("frozen") as file:
        assert file.read() == frozen["frozen"]


def begin(run: RunWriter, tmp_path: Path, files: dict[str, bytes], report_index: int) -> CheckpointWriter:
    write_files(tmp_path / "source", files)
    return run.begin_checkpoint(layout.checkpoint_name(report_index), report_index)


def test_a_manifest_that_comes_late_finds_its_files(
    server: S3Server, store: Store, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    run = open_run(store)
    report(run, tmp_path, {"f": b"one"})
    checkpoint = begin(run, tmp_path, {"f": b"two"}, 2)
    receipt = checkpoint.store_shard(stage(tmp_path / "source", 0)).result(SOON_S)
    go_on = threading.Event()
    held = proxy.fail(Fault("PUT", "checkpoint_000002/.manifest", waits_for=go_on))
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(checkpoint.commit, [receipt], metrics=b"{}", world_size=1, attempt=1)
        wait_until(lambda: not held.times, "the manifest is on its way")
        store.hurry()
        with pytest.raises(train.StorageInterruptedError):
            committing.result(SOON_S)
    checkpoint.abort()
    run.close()
    store.hurry(on=False)
    go_on.set()
    found = train.Run(server.url(bucket, "run"))
    wait_until(lambda: len(found.checkpoints) == 2, "the manifest has arrived")
    assert not any(found.verify().values())


def test_a_file_that_comes_late_blocks_nobody(
    server: S3Server, store: Store, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    run = open_run(store)
    report(run, tmp_path, {"f": b"one"})
    checkpoint = begin(run, tmp_path, {"f": b"two"}, 2)
    go_on = threading.Event()
    held = proxy.fail(Fault("PUT", "checkpoint_000002/f", waits_for=go_on))
    storing = checkpoint.store_shard(stage(tmp_path / "source", 0))
    wait_until(lambda: not held.times, "the file is on its way")
    store.hurry()
    with pytest.raises(train.StorageInterruptedError):
        storing.result(SOON_S)
    checkpoint.abort()
    run.close()
    store.hurry(on=False)
    go_on.set()
    behind = open_store(server.url(bucket, "run"))
    wait_until(lambda: behind.exists("checkpoint_000002/f"), "the file has arrived")
    again = open_run(behind)
    try:
        assert report(again, tmp_path, {"f": b"three"}, index=2).name == "checkpoint_000002"
    finally:
        again.close()
    assert not any(train.Run(server.url(bucket, "run")).verify().values())
