"""Guarantee 3 on the way out: damage of any kind is seen, and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.digest import FileHasher, digest_fd
from holdfast.persistence.staging import stage
from holdfast.persistence.upload import Uploader
from holdfast.persistence.verify import (
    all_untouched,
    find_damage,
    find_unknown,
    fingerprint,
    is_older_than_manifest,
    select,
)
from holdfast.records import Manifest, StoredFile
from holdfast.stores.base import Store
from holdfast.stores.local import LocalStore
from support.remote_like_store import RemoteLikeStore


def store_checkpoint(tmp_path: Path, store: Store) -> Manifest:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(b"aaaa")
    (source / "sub/b").write_bytes(b"b" * 6_000_000)
    (source / "empty").mkdir()
    (source / "link").symlink_to("a")
    uploader = Uploader(2)
    receipt = uploader.store_shard(stage(source, 0), store, "run/c").result(30)
    uploader.close()
    return Manifest(id="1", name="c", files=receipt.files)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def manifest(tmp_path: Path, store: LocalStore) -> Manifest:
    return store_checkpoint(tmp_path, store)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0")


def swap(path: Path, make: Callable[[Path], object]) -> None:
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    make(path)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "removed": ("a", lambda path: path.unlink(), "missing"),
    "truncated": ("sub/b", lambda path: os.truncate(path, 5), "5 bytes instead of 6000000"),
    "longer": ("a", lambda path: path.write_bytes(b"aaaaa"), "5 bytes instead of 4"),
    "one byte": ("sub/b", flip, "its content changed"),
    "a directory": ("a", lambda path: swap(path, Path.mkdir), "no regular file any more"),
    "a link": ("a", lambda path: swap(path, lambda it: it.symlink_to("sub/b")), "no regular file any more"),
    "link removed": ("link", lambda path: path.unlink(), "missing"),
    "link bent": ("link", lambda path: swap(path, lambda it: it.symlink_to("sub/b")), "points to 'sub/b'"),
    "link filled": ("link", lambda path: swap(path, lambda it: it.write_bytes(b"aaaa")), "no symbolic link any more"),
    "directory gone": ("empty", lambda path: path.rmdir(), "missing"),
    "directory filled": ("empty", lambda path: swap(path, lambda it: it.touch()), "no directory any more"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_found_and_named(store: LocalStore, manifest: Manifest, kind: str) -> None:
    path, damage, reason = DAMAGES[kind]
    assert find_damage(store, "run/c", manifest) == []
    before = fingerprint(store, "run/c", manifest)
    damage(store.local_path(f"run/c/{path}"))
    (found,) = find_damage(store, "run/c", manifest)
    assert found.path == path
    assert reason in found.reason
    assert not all_untouched(before, fingerprint(store, "run/c", manifest))


def test_a_damage_above_a_file_is_found(store: LocalStore, manifest: Manifest) -> None:
    store.delete_tree("run/c/sub")
    store.write("run/c/sub", b"a file")
    (found,) = find_damage(store, "run/c", manifest)
    assert str(found) == "sub/b: missing"
    store.delete_tree("run/c")
    assert {damage.path for damage in find_damage(store, "run/c", manifest)} == {"a", "sub/b", "link", "empty"}


def test_without_digests_only_what_costs_nothing_is_compared(store: LocalStore, manifest: Manifest) -> None:
    flip(store.local_path("run/c/sub/b"))
    assert find_damage(store, "run/c", manifest, digests=False) == []
    assert find_damage(store, "run/c", manifest, include=["a", "link"]) == []
    assert [damage.path for damage in find_damage(store, "run/c", manifest, include=["sub"])] == ["sub/b"]


def test_remote_stores_are_compared_too(tmp_path: Path) -> None:
    store = RemoteLikeStore(tmp_path / "remote")
    manifest = store_checkpoint(tmp_path, store)
    assert find_damage(store, "run/c", manifest) == []
    assert find_damage(store.child("run/c"), "", manifest) == []
    assert fingerprint(store, "run/c", manifest) is None
    store.write("run/c/a", b"AAAA")
    store.write("run/c/sub/b", b"short")
    found = {damage.path: damage.reason for damage in find_damage(store, "run/c", manifest)}
    assert found["sub/b"] == "5 bytes instead of 6000000"
    assert "its content changed" in found["a"]
    store.delete("run/c/a")
    assert find_damage(store, "run/c", manifest, include=["a"])[0].reason == "missing"


def test_what_is_written_after_the_manifest_is_younger_by_the_stores_own_clock(tmp_path: Path) -> None:
    store = RemoteLikeStore(tmp_path / "remote")
    store_checkpoint(tmp_path, store)
    assert not is_older_than_manifest(store, "run/c")  # there is none
    store.write(f"run/c/{layout.MANIFEST}", b"{}")
    assert is_older_than_manifest(store, "run/c")
    store.write(f"run/c/{layout.METADATA}", b"{}")
    assert is_older_than_manifest(store, "run/c")
    manifest_ns = os.stat(tmp_path / "remote" / "run" / "c" / layout.MANIFEST).st_mtime_ns
    file = tmp_path / "remote" / "run" / "c" / "a"
    os.utime(file, ns=(manifest_ns, manifest_ns))
    assert is_older_than_manifest(store, "run/c")
    os.utime(file, ns=(manifest_ns, manifest_ns + 1_000_000_000))
    assert not is_older_than_manifest(store, "run/c")
    os.utime(file, ns=(0, 0))  # a store that has no times
    assert not is_older_than_manifest(store, "run/c")


def test_files_of_an_unknown_digest_are_said_to_be_unchecked() -> None:
    files = (StoredFile(path="a"), StoredFile(path="b", digest="sha9:00"), StoredFile(path="c", kind="directory"))
    (damage,) = find_unknown(Manifest(files=files))
    assert (damage.path, damage.is_certain) == ("b", False)
    assert "sha9" in damage.reason


def test_links_that_come_and_go_touch_nothing(store: LocalStore, manifest: Manifest, tmp_path: Path) -> None:
    before = fingerprint(store, "run/c", manifest)
    place = store.local_path("run/c/a")
    os.link(place, tmp_path / "shared")
    between = fingerprint(store, "run/c", manifest)
    assert all_untouched(before, between)
    (tmp_path / "shared").unlink()
    assert all_untouched(between, fingerprint(store, "run/c", manifest))


def test_a_fingerprint_survives_the_rename_that_commits(store: LocalStore, manifest: Manifest) -> None:
    before = fingerprint(store, "run/c", manifest)
    store.rename("run/c", "run/d")
    assert all_untouched(before, fingerprint(store, "run/d", manifest))
    assert before is not None
    assert set(before) == {"a", "sub/b", "link", "empty"}


@pytest.mark.parametrize(
    ("include", "chosen"),
    [
        (None, "a.pt d/b.pt d/e/c.txt"),
        (["a.pt"], "a.pt"),
        (["d"], "d/b.pt d/e/c.txt"),
        (["d/"], "d/b.pt d/e/c.txt"),
        (["*.pt"], "a.pt d/b.pt"),
        (["d/e/*", "a.pt"], "a.pt d/e/c.txt"),
        ("a.pt", "a.pt"),
        ([], ""),
    ],
)
def test_patterns_choose_files_in_their_order(include: list[str] | None, chosen: str) -> None:
    files = [StoredFile(path=path) for path in ("a.pt", "d/b.pt", "d/e/c.txt")]
    assert [file.path for file in select(files, include)] == chosen.split()


def test_a_pattern_for_nothing_says_what_there_is() -> None:
    with pytest.raises(StoreNotFoundError, match=r"matches 'model\.pt'; it holds: 'a\.pt'"):
        select([StoredFile(path="a.pt")], ["model.pt"])


@given(parts=st.lists(st.tuples(st.booleans(), st.integers(1, 700_000)), max_size=6))
def test_the_digest_of_any_file_is_that_of_its_bytes(tmp_path_factory: pytest.TempPathFactory, parts) -> None:
    path = tmp_path_factory.mktemp("digest") / "file"
    with path.open("wb") as file:
        for is_hole, num_bytes in parts:
            file.seek(num_bytes, os.SEEK_CUR) if is_hole else file.write(b"\xa5" * num_bytes)
        file.truncate()
    hasher = FileHasher()
    hasher.update(path.read_bytes())
    with path.open("rb") as file:
        assert digest_fd(file.fileno(), path.stat().st_size) == hasher.text()
    path.unlink()
