"""What a local store does beyond the contract that `tests/conformance` checks."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import ConfigurationError, StorageError, StoreExistsError
from holdfast.stores import open_store
from holdfast.stores.local import LocalStore
from holdfast.stores.local_write import is_temporary_name
from holdfast.testing.store import put


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where this machine lets us make one."""
    place = tmp_path / "small-disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def everything_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


def test_a_path_is_made_absolute_and_loses_its_trailing_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert LocalStore("runs/").url == str(tmp_path / "runs")
    assert LocalStore("~/runs").url == "/home/someone/runs"
    assert LocalStore(tmp_path).child("a/b").local_path("c") == tmp_path / "a/b/c"


def test_keys_cannot_lead_out_of_the_store(store: LocalStore) -> None:
    for key in ("..", "../a", "a/../../b"):
        with pytest.raises(StorageError, match="leads out"):
            store.write(key, b"")
    store.write("a..b/..c", b"names with dots are fine")


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644, 0o755, 0o777, 0o4755])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_are_kept_whatever_the_umask(store: LocalStore, tmp_path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        put(store, "a", tmp_path, b"x", mode=mode)
    finally:
        os.umask(before)
    path = store.local_path("a")
    assert path.stat().st_mode & 0o7777 == mode
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("size_bytes", [2 * 1024 * 1024, 64 * 1024 * 1024])
def test_holes_stay_holes(store: LocalStore, tmp_path: Path, size_bytes: int) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(size_bytes // 2)
        file.write(b"middle")
        file.truncate(size_bytes)
    if source.stat().st_blocks * 512 >= size_bytes:
        pytest.skip("this file system has no holes")
    put(store, "a", tmp_path, None, source=source)
    copied = store.local_path("a")
    assert copied.stat().st_size == size_bytes
    assert copied.stat().st_blocks * 512 < 1024 * 1024
    assert copied.read_bytes() == source.read_bytes()


def test_create_works_where_links_are_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store.create("a", b"1")
    with pytest.raises(StoreExistsError):
        store.create("a", b"2")
    assert store.read("a") == b"1"
    assert not store.adopt_file("b", str(store.local_path("a")))
    assert everything_in(store.local_path()) == ["a"]


@pytest.mark.parametrize("call", ["write", "create"])
@pytest.mark.parametrize("broken", ["write", "replace", "link"])
def test_an_interrupted_write_leaves_no_temporary_file(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str, broken: str
) -> None:
    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    store.write("old", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, interrupt)
        try:
            getattr(store, call)("a", b"1")
        except KeyboardInterrupt:
            assert not store.exists("a")
    assert [name for name in everything_in(store.local_path()) if is_temporary_name(name)] == []
    assert store.read("old") == b"old"


def test_a_full_disk_is_named_and_nothing_partial_stays(small_disk: Path, tmp_path: Path) -> None:
    store = LocalStore(small_disk / "run")
    store.prepare()
    put(store, "kept", tmp_path, b"k" * 100_000)
    for size_bytes in (2_000_000, 8_000_000):
        with pytest.raises(StorageError, match=r"run/too-large'.*disk is full"):
            put(store, "too-large", tmp_path, b"x" * size_bytes)
    with pytest.raises(StorageError, match="disk is full"):
        store.write("record", b"x" * 2_000_000)
    with pytest.raises(StorageError, match="disk is full"):
        store.create("record", b"x" * 2_000_000)
    assert everything_in(small_disk) == ["kept", "run"]
    assert store.read("kept") == b"k" * 100_000


def test_an_append_that_a_full_disk_cut_is_taken_back(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    log = store.open_append("log")
    log.write(b"first\n")
    with pytest.raises(StorageError, match="disk is full"):
        log.write(b"x" * 2_000_000)
    assert store.read("log") == b"first\n"
    log.write(b"second\n")
    log.close()
    assert store.read("log") == b"first\nsecond\n"


def test_prepare_says_what_is_wrong_with_a_place(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(StorageError, match=r"is a file; choose another storage_path"):
            LocalStore(bad).prepare()
    with pytest.raises(StorageError, match=r"too long.*use shorter names"):
        LocalStore(tmp_path / ("x" * 300)).prepare()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for read_only in (small_disk, small_disk / "run"):
        with pytest.raises(StorageError, match="read-only"):
            LocalStore(read_only).prepare()


def test_a_place_where_no_directory_can_be_made_says_what_to_do() -> None:
    with pytest.raises(StorageError, match=r"/proc/nothing/run' for storage .*choose another storage_path"):
        LocalStore("/proc/nothing/run").prepare()


def test_deep_trees_are_removed(store: LocalStore) -> None:
    deep = "/".join(["d"] * 1050)  # deeper than the stack of a recursive walk
    store.make_directory(deep)
    store.delete_tree("d")
    assert everything_in(store.local_path()) == []


def test_removing_a_tree_does_not_follow_links(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"")
    store.put_symlink("tree/link", str(outside))
    store.delete_tree("tree")
    assert everything_in(outside) == ["precious"]


def test_listing_a_link_to_a_directory_does_not_enter_it(store: LocalStore) -> None:
    store.write("real/a", b"1")
    store.put_symlink("loop", ".")
    assert {entry.key for entry in store.list(recursive=True)} == {"real/a", "loop"}


def test_local_uris_are_paths(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/a%20b?c#d").url == f"{tmp_path}/a b?c#d"
    assert open_store(f"file://localhost{tmp_path}").url == str(tmp_path)
    with pytest.raises(ConfigurationError, match="names the host"):
        open_store("file://elsewhere/path")


@pytest.mark.parametrize("bad", ["", b"/bytes", None, 5, "a\0b"])
def test_what_is_no_path_is_refused(bad: object) -> None:
    with pytest.raises(ConfigurationError):
        open_store(bad)  # type: ignore[arg-type]
