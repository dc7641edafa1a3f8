"""Guarantees of the shared restore within one process; `tests/crash/test_restore_kills.py` has those between."""

from __future__ import annotations

import errno
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from holdfast.errors import DamagedCheckpointError, StorageError, StoreNotFoundError, WaitTimeoutError
from holdfast.persistence import download, restore
from holdfast.persistence.manifest import encode_manifest
from holdfast.persistence.restore import copy_to, shared_copy
from holdfast.persistence.staging import stage
from holdfast.persistence.upload import Uploader
from holdfast.records import Manifest
from holdfast.stores.local import LocalStore
from support.remote_like_store import RemoteLikeStore
from support.restore_readers import CountingStore, downloads, make_remote

LIMIT_S = 30


def left_over(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "cache").rglob("*"))


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


def test_a_copy_is_whole_private_and_gone_afterwards(tmp_path: Path) -> None:
    remote, manifest = make_remote(tmp_path)
    with shared_copy(RemoteLikeStore(remote), manifest, cache_dir=tmp_path / "cache") as directory:
        assert content(directory) == content(tmp_path / "source")
        assert (directory / ".manifest.json").read_bytes() == encode_manifest(manifest)
        assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert left_over(tmp_path) == []


def test_nested_and_neighbouring_readers_of_one_process_keep_their_files(tmp_path: Path) -> None:
    remote, manifest = make_remote(tmp_path)
    store = CountingStore(remote, log=tmp_path / "log")
    with shared_copy(store, manifest, cache_dir=tmp_path / "cache") as outer:
        with shared_copy(store, manifest, cache_dir=tmp_path / "cache") as inner:
            assert inner == outer
        assert content(outer) == content(tmp_path / "source")
    assert downloads(tmp_path) == len(manifest.files)
    assert left_over(tmp_path) == []


def test_threads_share_one_download(tmp_path: Path) -> None:
    remote, manifest = make_remote(tmp_path)
    store = CountingStore(remote, log=tmp_path / "log", pause_s=0.02)
    together = threading.Barrier(8)

    def read() -> bool:
        with shared_copy(store, manifest, cache_dir=tmp_path / "cache") as directory:
            together.wait(LIMIT_S)
            return content(directory) == content(tmp_path / "source")

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(read) for _ in range(8)]
        assert all(future.result(LIMIT_S) for future in futures)
    assert downloads(tmp_path) == len(manifest.files)
    assert left_over(tmp_path) == []


def test_readers_that_come_and_go_without_pause_never_see_a_partial_copy(tmp_path: Path) -> None:
    remote, manifest = make_remote(tmp_path, num_files=2, size_bytes=1000)
    store = RemoteLikeStore(remote)
    expected = content(tmp_path / "source")

    def read(_: int) -> bool:
        with shared_copy(store, manifest, cache_dir=tmp_path / "cache") as directory:
            return content(directory) == expected

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(120)))
    assert left_over(tmp_path) == []


def test_a_failed_download_is_not_seen_by_a_waiter_who_tries_himself(tmp_path: Path) -> None:
    remote, manifest = make_remote(tmp_path)
    failing, may_fail = threading.Event(), threading.Event()

    class FailsOnce(RemoteLikeStore):
        def open_read(self, key: str) -> BinaryIO:
            if not failing.is_set():
                failing.set()
                assert may_fail.wait(LIMIT_S)
                raise StorageError("the network is gone")
            return super().open_read(key)

    def read(store: RemoteLikeStore) -> bool:
        with shared_copy(store, manifest, cache_dir=tmp_path / "cache") as directory:
            return content(directory) == content(tmp_path / "source")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, FailsOnce(remote))
        assert failing.wait(LIMIT_S)
        second = pool.submit(read, RemoteLikeStore(remote))
        may_fail.set()
        with pytest.raises(StorageError, match="network is gone"):
            first.result(LIMIT_S)
        assert second.result(LIMIT_S)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("damage", ["altered", "shorter", "missing"])
def test_damage_is_found_while_downloading(tmp_path: Path, damage: str) -> None:
    remote, manifest = make_remote(tmp_path)
    path = remote / "file-2"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"x" * (50_000 if damage == "altered" else 10))
    with pytest.raises(DamagedCheckpointError, match="file-2"):
        with shared_copy(RemoteLikeStore(remote), manifest, cache_dir=tmp_path / "cache"):
            raise AssertionError("a damaged copy was handed out")
    assert left_over(tmp_path) == []
    with pytest.raises(DamagedCheckpointError, match="file-2"):
        copy_to(RemoteLikeStore(remote), manifest, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert [path.name for path in tmp_path.iterdir() if "holdfast-copy" in path.name] == []


def test_a_wait_has_a_limit_and_names_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remote, manifest = make_remote(tmp_path)
    monkeypatch.setattr(restore, "_FIRST_NOTICE_S", 0.0)
    downloading, go = threading.Event(), threading.Event()

    class HeldUp(RemoteLikeStore):
        def open_read(self, key: str) -> BinaryIO:
            downloading.set()
            assert go.wait(LIMIT_S)
            return super().open_read(key)

    def read() -> None:
        with shared_copy(HeldUp(remote), manifest, cache_dir=tmp_path / "cache"):
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert downloading.wait(LIMIT_S)
        with (
            caplog.at_level(logging.WARNING, "holdfast"),
            pytest.raises(WaitTimeoutError, match=f"process {os.getpid()}"),
        ):
            with shared_copy(RemoteLikeStore(remote), manifest, cache_dir=tmp_path / "cache", timeout_s=0.5):
                pass
        assert f"Waiting for process {os.getpid()} to download remote-like://" in caplog.text
    finally:
        go.set()
        reader.join(LIMIT_S)
    assert left_over(tmp_path) == []


def test_readers_of_some_files_share_with_their_like(tmp_path: Path) -> None:
    remote, manifest = make_remote(tmp_path)
    store = CountingStore(remote, log=tmp_path / "log")
    with shared_copy(store, manifest, include=["file-1", "file-0"], cache_dir=tmp_path / "cache") as some:
        with shared_copy(store, manifest, include=["file-0", "file-1"], cache_dir=tmp_path / "cache") as same:
            assert some == same
            assert sorted(os.listdir(some)) == ["file-0", "file-1"]
        with shared_copy(store, manifest, cache_dir=tmp_path / "cache") as everything:
            assert everything != some
    assert downloads(tmp_path) == 2 + len(manifest.files)
    with pytest.raises(StoreNotFoundError, match="matches 'nope'"):
        with shared_copy(store, manifest, include=["nope"], cache_dir=tmp_path / "cache"):
            pass
    assert left_over(tmp_path) == []


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    remote, manifest = make_remote(tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(StorageError, match="Others can write"):
        with shared_copy(RemoteLikeStore(remote), manifest, cache_dir=cache):
            pass
    cache.rmdir()
    cache.symlink_to(tmp_path)
    with pytest.raises(StorageError, match="Others can write"):
        with shared_copy(RemoteLikeStore(remote), manifest, cache_dir=cache):
            pass


def test_the_default_cache_is_one_for_each_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remote, manifest = make_remote(tmp_path)
    with shared_copy(RemoteLikeStore(remote), manifest) as directory:
        assert directory.is_relative_to(tmp_path / f"holdfast-{os.getuid()}" / "restore")


def local_checkpoint(tmp_path: Path) -> tuple[LocalStore, Manifest]:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "d/a").write_bytes(b"aaaa")
    (source / "d/a").chmod(0o750)
    (source / "link").symlink_to("d")
    with (source / "sparse").open("wb") as file:
        file.truncate(8_000_000)
    store = LocalStore(tmp_path / "run/checkpoint")
    uploader = Uploader(2)
    receipt = uploader.store_shard(stage(source, 0), store, "").result(LIMIT_S)
    uploader.close()
    manifest = Manifest(id="1", files=receipt.files)
    store.create(".manifest.json", encode_manifest(manifest))
    store.write(".metadata.json", b'{"k": 1}')
    return store, manifest


def tree(directory: Path) -> dict[str, object]:
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else ("directory" if path.is_dir() else (path.stat().st_mode, path.stat().st_size))
        for path in sorted(directory.rglob("*"))
    }


def test_a_copy_keeps_modes_links_holes_and_empty_directories(tmp_path: Path) -> None:
    store, manifest = local_checkpoint(tmp_path)
    target = tmp_path / "new/target"
    copy_to(store, manifest, target)
    assert tree(target) == tree(store.local_path())
    assert (target / "sparse").stat().st_blocks * 512 < 1_000_000
    assert target.stat().st_mode & 0o777 == 0o777 & ~download._umask()
    assert sorted(os.listdir(tmp_path / "new")) == ["target"]


def test_a_copy_into_a_directory_spares_what_it_does_not_replace(tmp_path: Path) -> None:
    store, manifest = local_checkpoint(tmp_path)
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    (target / "mine").write_bytes(b"mine")
    (target / "d/a").write_bytes(b"an older one")
    copy_to(store, manifest, target)
    assert (target / "mine").read_bytes() == b"mine"
    (target / "mine").unlink()
    assert tree(target) == tree(store.local_path())


def test_a_partial_copy_does_not_claim_to_be_a_checkpoint(tmp_path: Path) -> None:
    store, manifest = local_checkpoint(tmp_path)
    target = tmp_path / "target"
    copy_to(store, manifest, target)
    copy_to(store, manifest, target, include=["d/a"])
    assert not (target / ".manifest.json").exists()
    copy_to(store, manifest, tmp_path / "other", include=["d/a"])
    assert sorted(tree(tmp_path / "other")) == [".metadata.json", "d", "d/a"]


def test_a_copy_onto_a_file_is_refused(tmp_path: Path) -> None:
    store, manifest = local_checkpoint(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="is a file; give a directory"):
        copy_to(store, manifest, tmp_path / "file")


def test_a_full_disk_leaves_no_part_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, manifest = local_checkpoint(tmp_path)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "injected")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(StorageError, match="disk is full"):
        copy_to(store, manifest, tmp_path / "new/target")
    assert os.listdir(tmp_path / "new") == []
