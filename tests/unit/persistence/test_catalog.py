from __future__ import annotations

import shutil
import time

import pytest

from holdfast.persistence import layout
from holdfast.persistence.catalog import load
from holdfast.persistence.manifest import encode_manifest
from holdfast.records import Manifest, StoredFile
from holdfast.stores import open_store
from holdfast.stores.base import Store
from support.remote_like_store import RemoteLikeStore
from support.runs import open_run, report, write_files


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path) -> Store:
    return open_store(tmp_path / "run") if request.param == "local" else RemoteLikeStore(tmp_path / "run")


def _fill(store: Store, tmp_path, count: int = 3) -> None:
    writer = open_run(store)
    for index in range(1, count + 1):
        report(writer, tmp_path, {"f": b"x" * index}, {"loss": index})
    writer.close()


def _found(store: Store) -> list[str]:
    return [checkpoint.name for checkpoint in load(store).checkpoints]


def test_checkpoints_come_in_report_order_and_durable(store: Store, tmp_path) -> None:
    writer = open_run(store)
    report(writer, tmp_path, {"f": b"1"}, index=4, name="zebra")
    report(writer, tmp_path, {"f": b"2"}, index=5, name="ant")
    writer.close()
    found = load(store)
    assert [(each.name, each.report_index, each.durable) for each in found.checkpoints] == [
        ("zebra", 4, True),
        ("ant", 5, True),
    ]
    assert not found.problems


def test_an_empty_or_missing_run_has_nothing(store: Store) -> None:
    assert load(store).checkpoints == []


def test_an_unreadable_manifest_is_a_problem_not_an_end(store: Store, tmp_path) -> None:
    _fill(store, tmp_path)
    store.write(layout.manifest_key("checkpoint_000002"), b'{"form')
    found = load(store)
    assert [each.name for each in found.checkpoints] == ["checkpoint_000001", "checkpoint_000003"]
    assert list(found.damaged) == ["checkpoint_000002"]
    assert "checkpoint_000002" in found.problems[0]


def test_a_directory_without_a_manifest_is_no_checkpoint(store: Store, tmp_path) -> None:
    _fill(store, tmp_path, 1)
    store.write("mine/notes.txt", b"")
    found = load(store)
    assert [each.name for each in found.checkpoints] == ["checkpoint_000001"]
    assert not found.problems
    assert "mine" in found.directories


def test_a_lost_or_broken_note_loses_no_checkpoint(store: Store, tmp_path) -> None:
    _fill(store, tmp_path, 2)
    store.delete(layout.note_key("checkpoint_000001"))
    store.write(layout.note_key("checkpoint_000002"), b"\0\0")
    assert _found(store) == ["checkpoint_000001", "checkpoint_000002"]


def test_a_note_of_an_earlier_holder_of_the_name_is_stale(store: Store, tmp_path) -> None:
    _fill(store, tmp_path, 1)
    store.write(layout.note_key("checkpoint_000001"), b'{"id":"other","damaged":"bad","pinned":true}')
    found = load(store)
    assert len(found.checkpoints) == 1
    assert not found.pinned


def test_checkpoints_that_were_copied_elsewhere_are_all_valid(tmp_path) -> None:
    _fill(open_store(tmp_path / "run"), tmp_path)
    shutil.copytree(tmp_path / "run" / "checkpoint_000002", tmp_path / "kept" / "best")
    assert _found(open_store(tmp_path / "kept")) == ["best"]


def test_a_copy_that_a_user_made_inside_the_run_is_not_taken_for_the_runs_own(tmp_path) -> None:
    store = open_store(tmp_path / "run")
    _fill(store, tmp_path)
    shutil.copytree(tmp_path / "run" / "checkpoint_000002", tmp_path / "run" / "best-so-far")
    assert "best-so-far" not in _found(store)
    open_run(store).close()
    assert "best-so-far" not in _found(store)


def test_three_thousand_checkpoints_open_in_under_a_second(tmp_path) -> None:
    for index in range(3000):
        manifest = Manifest(id=str(index), name=f"c{index}", report_index=index, files=(StoredFile(path="f"),))
        write_files(tmp_path / f"c{index}", {layout.MANIFEST: encode_manifest(manifest)})
    store = open_store(tmp_path)
    best = 1e9
    for _ in range(3):
        began = time.thread_time()
        assert len(load(store).checkpoints) == 3000
        best = min(best, time.thread_time() - began)
    assert best < 1
