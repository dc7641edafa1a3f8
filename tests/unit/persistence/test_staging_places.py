"""The places on a machine where workers of remote runs write: who owns them, and what a dead owner leaves."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

from holdfast.errors import StorageError
from holdfast.persistence import memory, staging_places
from holdfast.persistence.private_place import make_private, user_place
from holdfast.persistence.staging_places import StagingPlaces, disk_place, memory_place, note_full
from holdfast.stores.local import LocalStore
from support.remote_like_store import RemoteLikeStore


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    monkeypatch.setenv("HOLDFAST_MEMORY_DIR", str(tmp_path / "memory"))
    monkeypatch.setattr(staging_places, "is_in_memory", lambda place: True)
    (tmp_path / "memory").mkdir()
    return RemoteLikeStore(tmp_path / "run")


def fill(run):
    for place in (disk_place(run), memory_place(run)):
        make_private(place)
        (place / "directory").mkdir()
        (place / "directory" / "file").write_text("x")


def left(tmp_path):
    """Files and directories of runs, on disk and in memory."""
    places = [user_place("staging"), user_place("staging", tmp_path / "memory")]
    return sorted(entry.name for place in places if place.exists() for entry in place.iterdir())


def test_a_driver_holds_its_places_and_leaves_nothing(run, tmp_path):
    places = StagingPlaces(run)
    places.take()
    fill(run)
    StagingPlaces(RemoteLikeStore(tmp_path / "other")).take()
    assert disk_place(run).exists()
    assert memory_place(run).exists()
    places.empty()
    assert not disk_place(run).exists()
    assert not memory_place(run).exists()
    fill(run)
    places.close()
    places.close()
    assert not any(name.startswith(disk_place(run).name) for name in left(tmp_path))


@pytest.mark.parametrize("who", ["the same", "another", "a local one"])
def test_what_a_killed_driver_left_is_removed_at_the_next_start_of_any_run(run, tmp_path, who):
    child = os.fork()
    if child == 0:
        StagingPlaces(run).take()
        fill(run)
        note_full(run)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert left(tmp_path)
    next_run = {"the same": run, "another": RemoteLikeStore(tmp_path / "b"), "a local one": LocalStore(tmp_path)}[who]
    places = StagingPlaces(next_run)
    places.take()
    assert not disk_place(run).exists()
    assert not (tmp_path / "memory" / f"holdfast-{os.getuid()}" / "staging" / disk_place(run).name).exists()
    places.close()
    assert left(tmp_path) == []


def test_a_run_for_which_memory_was_too_small_has_no_place_there_until_it_ends(run):
    places = StagingPlaces(run)
    places.take()
    assert memory_place(run) is not None
    note_full(run)
    assert memory_place(run) is None
    places.close()
    assert memory_place(run) is not None


def test_a_local_run_has_no_places(run, tmp_path):
    local = LocalStore(tmp_path)
    assert disk_place(local) is None
    assert memory_place(local) is None
    note_full(local)
    places = StagingPlaces(local)
    places.take()
    places.close()
    assert left(tmp_path) == []


def test_memory_is_what_the_system_says_is_memory(tmp_path, monkeypatch):
    run = RemoteLikeStore(tmp_path / "run")
    for directory in (tmp_path / "missing", "/proc"):
        monkeypatch.setenv("HOLDFAST_MEMORY_DIR", str(directory))
        assert memory_place(run) is None
    monkeypatch.setattr(memory, "_MOUNTS", tmp_path / "none")
    assert not memory.is_in_memory("/")


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_a_private_place_is_private_whatever_new_directories_are(tmp_path, umask):
    before = os.umask(umask)
    try:
        place = user_place("staging", tmp_path / "top") / "run"
        make_private(place)
        make_private(place)
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o777 == 0o700
    assert place.parents[1].stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_place_that_others_can_write_to_is_refused_at_any_level(tmp_path, level):
    place = user_place("staging", tmp_path) / "run"
    make_private(place)
    [place, *place.parents][level].chmod(0o777)
    with pytest.raises(StorageError, match="Others can write"):
        make_private(place)
