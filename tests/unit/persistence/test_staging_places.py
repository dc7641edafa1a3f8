"""The places on a machine where workers of remote runs write: who owns them, and what a dead owner leaves."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.persistence import file_systems, staging_places
from holdfast.persistence.private_place import make_private, user_place
from holdfast.persistence.staging_places import StagingPlaces, is_full, note_full
from holdfast.stores.local import LocalStore
from support.remote_like_store import RemoteLikeStore


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    monkeypatch.setenv("HOLDFAST_MEMORY_DIR", str(tmp_path / "memory"))
    monkeypatch.setattr(staging_places, "is_in_memory", lambda place: True)
    (tmp_path / "memory").mkdir()
    return RemoteLikeStore(tmp_path / "run")


def fill(places):
    for place in map(Path, places.paths):
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
    fill(places)
    other = StagingPlaces(RemoteLikeStore(tmp_path / "other"))
    other.take()
    assert [os.path.exists(path) for path in places.paths] == [True, True]
    places.empty()
    assert [os.path.exists(path) for path in places.paths] == [False, False]
    fill(places)
    other.close()
    places.close()
    places.close()
    assert left(tmp_path) == []


@pytest.mark.parametrize("who", ["the same", "another", "a local one"])
def test_what_a_killed_driver_left_is_removed_at_the_next_start_of_any_run(run, tmp_path, who):
    child = os.fork()
    if child == 0:
        places = StagingPlaces(run)
        places.take()
        fill(places)
        note_full(places.paths[0])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert left(tmp_path)
    next_run = {"the same": run, "another": RemoteLikeStore(tmp_path / "b"), "a local one": LocalStore(tmp_path)}[who]
    places = StagingPlaces(next_run)
    places.take()
    assert all(name.endswith(".lock") for name in left(tmp_path))  # our own
    places.close()
    assert left(tmp_path) == []


def test_a_run_for_which_memory_was_too_small_has_no_place_there_until_it_ends(run):
    places = StagingPlaces(run)
    places.take()
    disk = places.paths[0]
    assert not is_full(disk)
    note_full(disk)
    assert is_full(disk)
    places.close()
    assert not is_full(disk)


def test_a_local_run_has_no_places(run, tmp_path):
    places = StagingPlaces(LocalStore(tmp_path))
    assert places.paths == []
    places.take()
    places.close()
    assert left(tmp_path) == []


def test_memory_is_what_the_system_says_is_memory(tmp_path, monkeypatch):
    run = RemoteLikeStore(tmp_path / "run")
    for directory in (tmp_path / "missing", "/proc"):
        monkeypatch.setenv("HOLDFAST_MEMORY_DIR", str(directory))
        assert len(StagingPlaces(run).paths) == 1
    monkeypatch.setattr(file_systems, "_MOUNTS", tmp_path / "none")
    assert not file_systems.is_in_memory("/")


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
