from __future__ import annotations

import pytest

from holdfast.errors import CheckpointExistsError, StorageError
from holdfast.persistence import layout
from holdfast.persistence.commit import commit, files_of, place_of
from holdfast.persistence.manifest import read_manifest
from holdfast.records import Manifest, StoredFile
from holdfast.stores import open_store
from holdfast.stores.base import Store
from support.failing_store import WatchedStore, refuse
from support.remote_like_store import RemoteLikeStore


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path) -> Store:
    return open_store(tmp_path) if request.param == "local" else RemoteLikeStore(tmp_path)


def _stored(store: Store, name: str = "c", **fields: object) -> tuple[str, Manifest]:
    place = place_of(store, name, 1, 1)
    store.write(f"{place}/f", b"abc")
    return place, Manifest(**{"id": "01", "name": name, "files": (StoredFile(path="f", size_bytes=3),), **fields})


def test_nothing_exists_before_and_everything_after(store: Store) -> None:
    place, manifest = _stored(store)
    assert read_manifest(store.child("c")) is None
    committed = commit(store, partial=place, manifest=manifest, metadata='{"a":1}')
    assert (committed.name, committed.num_files, committed.size_bytes) == ("c", 1, 3)
    assert read_manifest(store.child("c")) == manifest
    assert store.read("c/f") == b"abc"
    assert store.read(layout.metadata_key("c")) == b'{"a":1}'


def test_a_taken_name_is_refused_and_its_holder_untouched(store: Store) -> None:
    place, manifest = _stored(store)
    commit(store, partial=place, manifest=manifest, metadata=None)
    other, second = _stored(store, id="02")
    with pytest.raises(CheckpointExistsError, match=r"'c'.*checkpoint_dir_name"):
        commit(store, partial=other, manifest=second, metadata=None)
    found = read_manifest(store.child("c"))
    assert found is not None
    assert found.id == "01"


def test_a_directory_of_the_users_own_is_not_replaced(tmp_path) -> None:
    store = open_store(tmp_path)
    (tmp_path / "c").mkdir()
    place, manifest = _stored(store)
    with pytest.raises(CheckpointExistsError):
        commit(store, partial=place, manifest=manifest, metadata=None)
    assert list((tmp_path / "c").iterdir()) == []


def test_files_that_lie_in_place_become_a_checkpoint_where_they_lie(tmp_path) -> None:
    store = open_store(tmp_path)
    store.write("c/f", b"abc")
    manifest = _stored(store)[1]
    commit(store, partial="c", manifest=manifest, metadata=None)
    assert read_manifest(store.child("c")) == manifest


class _LosesAnswers(WatchedStore):
    """Does what it is asked, and then says that it failed."""

    def __getattr__(self, name: str):
        found = super().__getattr__(name)
        if name not in ("create", "rename"):
            return found

        def lost(*args):
            found(*args)
            raise StorageError("the connection was lost")

        return lost


def test_a_lost_answer_is_read_back_not_assumed(store: Store) -> None:
    losing = _LosesAnswers(store, lambda *_: None)
    place, manifest = _stored(losing)
    assert commit(losing, partial=place, manifest=manifest, metadata=None).id == "01"


def test_a_refused_last_write_is_an_error_and_no_checkpoint(store: Store) -> None:
    refusing = WatchedStore(store, refuse(lambda operation, _: operation in ("create", "rename")))
    place, manifest = _stored(refusing)
    with pytest.raises(StorageError, match="refused"):
        commit(refusing, partial=place, manifest=manifest, metadata=None)
    assert read_manifest(store.child("c")) is None


def test_strict_flushes_everything_before_it_can_be_seen(tmp_path) -> None:
    seen: list[tuple[str, str]] = []
    store = WatchedStore(open_store(tmp_path), lambda operation, key: seen.append((operation, key)))
    place, manifest = _stored(store)
    commit(store, partial=place, manifest=manifest, metadata=None, strict=True)
    assert [operation for operation, _ in seen][-2:] == ["sync", "rename"]


def test_what_a_disk_must_have_is_every_entry_and_the_records() -> None:
    manifest = Manifest(files=(StoredFile(path="a%25/b"), StoredFile(path="d", kind="directory")))
    assert files_of(manifest, "c", metadata=True) == ["c/a%/b", "c/d", "c/.manifest.json", "c/.metadata.json"]
