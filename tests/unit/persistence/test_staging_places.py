"""The places on a machine where workers of remote runs write: who owns them, and what a dead owner leaves."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.persistence import file_systems, machine, staging_places
from holdfast.persistence.private_place import make_private, user_place
from holdfast.persistence.staging_places import StagingPlaces, is_full, note_full
from holdfast.stores.local import LocalStore
from holdfast.stores.local_lock import FileLock, try_lock
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


@pytest.mark.parametrize("ends", ["the first", "the second"])
def test_two_drivers_of_one_url_leave_each_other_alone(run, tmp_path, ends):
    # Two services may have a bucket of one name, which the URL does not tell.
    first, second = StagingPlaces(run), StagingPlaces(run)
    for places in (first, second):
        places.take()
        fill(places)
        note_full(places.paths[0])
    ending, staying = (first, second) if ends == "the first" else (second, first)
    ending.empty()
    ending.close()
    StagingPlaces(LocalStore(tmp_path)).take()
    assert [os.path.exists(f"{path}/directory/file") for path in staying.paths] == [True, True]
    assert is_full(staying.paths[0])
    assert not is_full(ending.paths[0])
    staying.close()
    assert left(tmp_path) == []


def test_a_forked_child_removes_nothing_of_its_parent(run, tmp_path):
    places = StagingPlaces(run)
    places.take()
    fill(places)
    before = left(tmp_path)
    child = os.fork()
    if child == 0:
        places.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert left(tmp_path) == before
    assert [os.path.exists(f"{path}/directory/file") for path in places.paths] == [True, True]
    places.close()
    assert left(tmp_path) == []


@pytest.mark.parametrize("shared", [True, False])
def test_on_a_shared_disk_a_machine_removes_its_own_left_overs_only(run, tmp_path, monkeypatch, shared):
    monkeypatch.setattr(staging_places, "is_of_one_machine", lambda place: not shared)
    dead = []
    for name in ("this", "other"):
        monkeypatch.setattr(staging_places, "machine_id", lambda name=name: name)
        places = StagingPlaces(run)
        places.take()
        dead.append(places)
    # None of the two sees a lock of the other.
    for places in dead:
        fill(places)
        for lock in places._locks.values():
            lock.release()
    monkeypatch.setattr(staging_places, "machine_id", lambda: "this")
    StagingPlaces(LocalStore(tmp_path)).take()
    assert [os.path.exists(path) for path in dead[0].paths] == [False, False]
    assert [os.path.exists(path) for path in dead[1].paths] == [shared, shared]


def test_a_place_that_somebody_sweeps_before_it_is_locked_is_no_loss(run, tmp_path, monkeypatch):
    taken = []

    def swept_first(path):
        taken.append(path)
        return None if len(taken) == 1 else try_lock(path)

    monkeypatch.setattr(staging_places, "try_lock", swept_first)
    places = StagingPlaces(run)
    places.take()
    assert len(taken) == 3
    assert taken[1] == f"{places.paths[0]}.lock"
    places.close()
    assert left(tmp_path) == []


def test_a_disk_that_is_not_to_be_used_is_told_by_whoever_needs_it(run, tmp_path):
    place = user_place("staging", tmp_path / "memory")
    make_private(place)
    user_place("staging").mkdir(parents=True)
    for directory in (place, user_place("staging")):
        directory.chmod(0o777)
    places = StagingPlaces(run)
    places.take()
    (disk,) = places.paths
    with pytest.raises(StorageError, match="Others can write"):
        make_private(Path(disk))
    places.close()


def test_a_file_system_without_locks_is_not_littered(run, tmp_path, monkeypatch):
    def no_locks(lock, *, shared):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "try_lock", no_locks)
    places = StagingPlaces(run)
    places.take()
    assert len(places.paths) == 1
    places.close()
    assert left(tmp_path) == []


def test_a_local_run_has_no_places(run, tmp_path):
    places = StagingPlaces(LocalStore(tmp_path))
    assert places.paths == []
    places.take()
    places.close()
    assert left(tmp_path) == []


def test_memory_is_what_the_system_says_is_memory_and_what_is_none_is_told_of_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    (tmp_path / "file").touch()
    for directory, problem in (
        (tmp_path / "missing", "No such file"),
        (tmp_path / "file", "is no directory"),
        ("/proc", "is not in memory"),
    ):
        caplog.clear()
        monkeypatch.setenv("HOLDFAST_MEMORY_DIR", str(directory))
        places = StagingPlaces(RemoteLikeStore(tmp_path / "run"))
        places.take()
        assert len(places.paths) == 1
        places.close()
        (told,) = [each.getMessage() for each in caplog.records]
        assert f"HOLDFAST_MEMORY_DIR={directory} " in told
        assert problem in told
    monkeypatch.setattr(file_systems, "_MOUNTS", tmp_path / "none")
    assert not file_systems.is_in_memory("/")


@pytest.mark.parametrize(
    ("kind", "is_own"), [("ext4", True), ("tmpfs", True), ("nfs4", False), ("lustre", False), ("", False)]
)
def test_a_file_system_is_of_one_machine_only_where_that_is_known(monkeypatch, kind, is_own):
    monkeypatch.setattr(file_systems, "_kind", lambda place: kind)
    assert file_systems.is_of_one_machine("/") is is_own


def test_a_machine_without_a_boot_id_has_its_name(monkeypatch, tmp_path):
    assert machine.machine_id() == machine.boot_id()
    monkeypatch.setattr(machine, "_BOOT_ID", tmp_path / "none")
    assert machine.boot_id() is None
    assert machine.machine_id() == os.uname().nodename


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
