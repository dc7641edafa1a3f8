"""What the node keeps open of a checkpoint: within bounds, without a lock, and not for ever."""

from __future__ import annotations

import fcntl
import io
import os
import sys
import tempfile
import threading
from pathlib import Path

import msgspec
import pytest

from holdfast import Checkpoint
from holdfast import checkpoint as checkpoint_module
from holdfast.persistence import file_systems, kept_copies, open_files
from holdfast.persistence import kept as kept_module
from holdfast.persistence.digest import digest_fd
from holdfast.persistence.download import fetch
from holdfast.persistence.from_kept import open_from_kept
from holdfast.persistence.kept import Keeper, KeptFiles
from holdfast.persistence.kept_copies import KeptCopies
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.restore import default_cache_dir, shared_copy
from holdfast.records import CommittedCheckpoint, Manifest, StagedFile
from holdfast.stores.local import LocalStore
from holdfast.stores.local_lock import try_lock
from support.descriptors import num_open_below
from support.remote_like_store import RemoteLikeStore
from support.restore_readers import CountingStore, downloads, make_remote
from support.runs import open_run, report
from support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")


@pytest.fixture
def run(tmp_path):
    return RemoteLikeStore(tmp_path / "run")


@pytest.fixture
def keeper(run):
    keeper = Keeper(run, None)
    yield keeper
    keeper.close()


def add(kept, place: Path, path: str = "") -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        kept.add(StagedFile(path=path or place.name, size_bytes=place.stat().st_size), descriptor)
    finally:
        os.close(descriptor)


def write(tmp_path: Path, name: str, size_bytes: int = 1000) -> Path:
    path = tmp_path / name
    path.write_bytes(os.urandom(size_bytes))
    return path


def manifest_of(*names: str, name: str = "checkpoint_000001") -> Manifest:
    files = tuple(StagedFile(path=each, size_bytes=1000) for each in names)
    return Manifest(
        id=name, name=name, report_index=1, created="", epoch=1, attempt=1, world_size=1, metrics=b"{}", files=files
    )  # type: ignore[arg-type]


def test_it_keeps_the_bytes_of_the_newest_whatever_becomes_of_the_file(keeper, tmp_path):
    for number in range(3):
        file = write(tmp_path, f"{number}")
        expected = file.read_bytes()
        kept = keeper.begin()
        add(kept, file)
        file.unlink()
        keeper.committed(manifest_of(file.name, name=f"c{number}"), kept)
        (place,) = keeper.places(f"c{number}").values()
        assert Path(place).read_bytes() == expected
        assert keeper.places(f"c{number - 1}") == {}
        wait_until(lambda: num_open_below(tmp_path) == 1, "what was kept of the one before is let go of")
    keeper.close()
    assert num_open_below(tmp_path) == 0


def test_what_was_given_up_and_what_never_ended_is_let_go_of(keeper, tmp_path):
    given_up, never_ended = keeper.begin(), keeper.begin()
    for each in (given_up, never_ended):
        add(each, write(tmp_path, "a"))
    given_up.close()
    assert num_open_below(tmp_path) == 1
    add(given_up, tmp_path / "a")  # a thread that came late
    keeper.close()
    assert num_open_below(tmp_path) == 0


def test_a_local_run_and_one_that_wants_none_keep_nothing(tmp_path, run):
    assert Keeper(LocalStore(tmp_path), None).begin() is None
    assert Keeper(run, 0).begin() is None


def test_a_limit_of_bytes_counts_each_file_once(run, tmp_path):
    keeper = Keeper(run, 2500)
    kept = keeper.begin()
    for name in ("a", "b", "c"):
        add(kept, write(tmp_path, name))
        add(kept, tmp_path / name)  # of another rank that reported it too
    add(kept, write(tmp_path, "small", 500))
    assert sorted(kept.places()) == ["a", "b", "small"]
    keeper.close()


def test_by_default_it_is_a_part_of_what_is_free_where_the_files_lie(keeper, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "free_bytes", lambda place: 5000)
    kept = keeper.begin()
    for name in "abcd":
        add(kept, write(tmp_path, name))
    assert sorted(kept.places()) == ["a", "b"]


def test_files_are_few_enough_for_the_program_to_open_others(keeper, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "most_open_files", lambda: 40)
    file = write(tmp_path, "a")
    for number in range(3):
        kept = keeper.begin()
        for each in range(20):
            add(kept, file, f"{each}")
        assert len(kept.places()) == (5 if number < 2 else 0)


@pytest.mark.parametrize(("kind", "is_kept"), [("nfs4", False), ("fuse.sshfs", False), ("xfs", True), (None, True)])
def test_what_would_leave_another_name_when_it_is_removed_is_not_kept(keeper, tmp_path, monkeypatch, kind, is_kept):
    file = write(tmp_path, "a")
    device = file.stat().st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw shared:1 - {kind} server rw\n"
    (tmp_path / "mounts").write_text(line if kind else "")
    monkeypatch.setattr(file_systems, "_MOUNTS", tmp_path / "mounts")
    kept = keeper.begin()
    add(kept, file)
    assert bool(kept.places()) == is_kept


def test_memory_that_is_kept_is_not_in_use(keeper):
    """A worker's buffer is free when nobody holds a lock on it: the node's descriptor must not."""
    memory = os.memfd_create("state")
    os.truncate(memory, 1000)
    handed_over = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    fcntl.flock(handed_over, fcntl.LOCK_SH)
    kept = keeper.begin()
    kept.add(StagedFile(path="a", size_bytes=1000, source="/proc/1/fd/1"), handed_over)
    os.close(handed_over)
    assert len(kept.places()) == 1
    fcntl.flock(memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(memory)


def test_what_is_not_what_was_reported_is_fetched(tmp_path):
    remote, manifest = make_remote(tmp_path)
    store = CountingStore(remote, log=tmp_path / "log")
    files = [file for file in manifest.files if file.kind == "file"]
    kept = {}
    for number, file in enumerate(files):
        source = tmp_path / "source" / file.path
        if number % 3 == 1:
            changed = bytearray(source.read_bytes())
            changed[-1] ^= 1
            source.write_bytes(changed)
        kept[file.path] = str(source) if number % 3 < 2 else str(tmp_path)  # a directory, as any number may lead to
    (tmp_path / "out").mkdir()
    fetch(store, manifest, tmp_path / "out", kept=kept)
    for file in files:
        descriptor = os.open(tmp_path / "out" / file.path, os.O_RDONLY)
        assert digest_fd(descriptor, file.size_bytes) == file.digest
        os.close(descriptor)
    assert downloads(tmp_path) == sum(number % 3 > 0 for number in range(len(files)))


def test_a_kept_file_is_opened_only_if_it_is_the_one(tmp_path):
    _, manifest = make_remote(tmp_path)
    file = next(file for file in manifest.files if file.kind == "file")
    source = tmp_path / "source" / file.path
    expected = source.read_bytes()
    opened = open_from_kept({file.path: str(source)}, file)
    source.write_bytes(bytes(len(expected)))
    assert opened is not None
    with opened:
        assert opened.read() == expected  # a copy: nobody writes to it
    assert open_from_kept({file.path: str(source)}, file) is None
    assert open_from_kept({}, file) is None


def committed_of(manifest: Manifest) -> CommittedCheckpoint:
    return CommittedCheckpoint(
        name="c", id=manifest.id, report_index=1, created=manifest.created, epoch=1, attempt=1, world_size=1,
        metrics=b"{}", num_files=len(manifest.files), size_bytes=sum(file.size_bytes for file in manifest.files),
    )  # type: ignore[arg-type] # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return default_cache_dir()


@pytest.mark.parametrize("include", [None, ["file-0*"]])
def test_copies_that_a_node_wants_stay_until_it_does_not(tmp_path, cache, include):
    remote, manifest = make_remote(tmp_path)
    if include:
        include = [manifest.files[0].path]
    store = CountingStore(remote, log=tmp_path / "log")
    wish = KeptCopies.of(store, committed_of(manifest), lambda place, size_bytes: True)
    assert wish is not None
    for _ in range(3):
        with shared_copy(store, manifest, include=include):
            pass
    assert downloads(tmp_path) == (len(manifest.files) if include is None else 1)
    wish.release()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("dies", [False, True])
def test_a_copy_that_waited_is_compared_before_it_is_used_again(tmp_path, cache, dies, caplog):
    """A reader may have written to it, or power have been lost before its bytes were on the disk."""
    remote, manifest = make_remote(tmp_path)
    store = CountingStore(remote, log=tmp_path / "log")
    file = manifest.files[0]

    def spoil():
        KeptCopies.of(store, committed_of(manifest), lambda place, size_bytes: True)
        with shared_copy(store, manifest) as directory:
            (directory / file.path).write_bytes(bytes(file.size_bytes))

    if dies:
        child = os.fork()
        if child == 0:
            spoil()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        spoil()
    wish = KeptCopies.of(store, committed_of(manifest), lambda place, size_bytes: True)
    for _ in range(2):
        with shared_copy(store, manifest) as directory:
            assert (directory / file.path).read_bytes() == (tmp_path / "source" / file.path).read_bytes()
    assert downloads(tmp_path) == 2 * len(manifest.files)
    assert "was changed" in caplog.text
    wish.release()


def test_a_node_that_died_keeps_no_copies(tmp_path, cache):
    remote, manifest = make_remote(tmp_path)
    store = RemoteLikeStore(remote)
    child = os.fork()
    if child == 0:
        KeptCopies.of(store, committed_of(manifest), lambda place, size_bytes: True)
        with shared_copy(store, manifest):
            pass
        os._exit(0 if len(list(cache.iterdir())) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (tmp_path / "other").mkdir()
    other, another = make_remote(tmp_path / "other")
    with shared_copy(RemoteLikeStore(other), another):
        pass
    assert list(cache.iterdir()) == []


def test_no_copy_stays_where_there_is_no_room(tmp_path, cache):
    remote, manifest = make_remote(tmp_path)
    assert KeptCopies.of(RemoteLikeStore(remote), committed_of(manifest), lambda place, size_bytes: False) is None


def test_the_limit_of_open_files_is_what_it_was(run):
    before = open_files.most_open_files()
    Keeper(run, None).close()
    assert open_files.most_open_files() == before


def test_a_copy_that_somebody_reads_says_nothing_of_what_the_store_holds(run, tmp_path, cache):
    writer = open_run(run)
    for step in range(2):
        report(writer, tmp_path / "source", {"model": bytes([step]) * 1000})
    writer.close()
    newest = run.child("checkpoint_000002")
    with shared_copy(newest, read_manifest(newest)):
        newest.write("model", bytes(1000))
        writer = open_run(run)
        assert writer.latest_valid().name == "checkpoint_000001"
        writer.close()
    assert list(cache.iterdir()) == []


def test_a_copy_that_somebody_reads_is_used_where_the_store_holds_the_same(run, tmp_path, cache):
    writer = open_run(run)
    report(writer, tmp_path / "source", {"model": bytes(1000)})
    writer.close()
    newest = run.child("checkpoint_000001")
    with shared_copy(newest, read_manifest(newest)) as directory:
        writer = open_run(run)
        latest = writer.latest_valid()
        assert writer.keeper.prepare_restart(latest) == {"model": f"{directory}/model"}
        writer.close()
    assert list(cache.iterdir()) == []


def test_a_file_whose_name_is_no_text_is_left_to_the_workers(run, tmp_path, cache):
    name = os.fsdecode(b"\xff.bin")
    writer = open_run(run)
    report(writer, tmp_path / "source", {name: bytes(1000), "model": bytes(1000)})
    writer.close()
    writer = open_run(run)
    kept = writer.keeper.prepare_restart(writer.latest_valid())
    assert list(kept) == ["model"]
    msgspec.msgpack.encode(kept)
    checkpoint = Checkpoint._from_store(run.child("checkpoint_000001"), verified=True, kept=kept)
    with checkpoint.as_directory() as directory:
        assert Path(directory, name).read_bytes() == bytes(1000)
    writer.close()


def test_a_download_of_somebody_else_that_hangs_is_not_waited_for(run, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(kept_copies, "_FETCH_TIMEOUT_S", 0.1)
    writer = open_run(run)
    report(writer, tmp_path / "source", {"model": bytes(1000)})
    writer.close()
    newest = run.child("checkpoint_000001")
    with shared_copy(newest, read_manifest(newest)) as directory:
        gate = try_lock(str(directory.parent / "gate"))
        assert gate is not None
        try:
            writer = open_run(run)
            assert writer.latest_valid().name == "checkpoint_000001"
        finally:
            gate.release()
        writer.close()


def test_what_was_written_within_the_manifests_second_is_found_once_it_is_doubted(run, tmp_path, cache):
    writer = open_run(run, restart_cache_bytes=0)
    for step in range(3):
        report(writer, tmp_path / "source", {"model": bytes([step]) * 1000})
    for number in (2, 3):
        directory = tmp_path / f"run/checkpoint_{number:06d}"
        then_ns = (directory / ".manifest.json").stat().st_mtime_ns
        (directory / "model").write_bytes(b"!" * 1000)
        os.utime(directory / "model", ns=(then_ns, then_ns))
    assert writer.latest_valid().name == "checkpoint_000003"  # nothing can tell
    writer.doubt("checkpoint_000003", is_damaged=False)
    assert writer.latest_valid().name == "checkpoint_000002"
    writer.doubt("checkpoint_000002", is_damaged=True)
    assert writer.latest_valid().name == "checkpoint_000001"
    writer.close()


def test_a_doubt_has_digests_compared_once(run, tmp_path, cache, monkeypatch):
    writer = open_run(run)
    report(writer, tmp_path / "source", {"model": bytes(1000)})
    fetched = []
    fetch_it = writer.keeper.fetch
    monkeypatch.setattr(writer.keeper, "fetch", lambda *each: fetched.append(each) or fetch_it(*each))
    for _ in range(3):
        writer.doubt("checkpoint_000001", is_damaged=False)
        assert writer.latest_valid() is not None
        assert len(fetched) == 1
    writer.doubt("checkpoint_000001", is_damaged=True)
    for _ in range(2):
        assert writer.latest_valid() is not None
        assert len(fetched) == 2
    writer.close()
    writer = open_run(run)
    fetch_it = writer.keeper.fetch
    monkeypatch.setattr(writer.keeper, "fetch", lambda *each: fetched.append(each) or fetch_it(*each))
    for _ in range(2):
        assert writer.latest_valid() is not None
        assert len(fetched) == 3  # an earlier driver's
        writer.doubt("checkpoint_000001", is_damaged=False)
    writer.close()


def test_a_commit_does_not_wait_until_an_older_checkpoint_is_let_go_of(run, tmp_path, monkeypatch):
    writer = open_run(run)
    report(writer, tmp_path / "source", {"model": bytes(1000)})
    goes_on, close = threading.Event(), KeptFiles.close
    monkeypatch.setattr(KeptFiles, "close", lambda kept: goes_on.wait(60) and close(kept))
    for _ in range(2):
        report(writer, tmp_path / "source", {"model": bytes(1000)})
    assert len(writer.checkpoints()) == 3
    assert len(writer.keeper.places("checkpoint_000003")) == 1
    goes_on.set()
    writer.close()


@pytest.mark.parametrize(("owner", "method"), [(KeptFiles, "close"), (Keeper, "committed")])
def test_a_checkpoint_is_committed_whatever_becomes_of_what_is_kept(run, tmp_path, monkeypatch, caplog, owner, method):
    writer = open_run(run)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, lambda *_: 1 / 0)
        for _ in range(2):
            report(writer, tmp_path / "source", {"model": bytes(1000)})
        assert len(writer.checkpoints()) == 2
        wait_until(lambda: "division by zero" in caplog.text, "it is told")
    writer.close()


def test_a_large_file_is_opened_without_copying_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "_COPIED_BYTES", 1000)
    writer = open_run(run)
    committed = report(writer, tmp_path / "source", {"small": bytes(1000), "large": bytes(1001)})
    store = run.child(committed.name)
    kept = writer.keeper.prepare_restart(committed)
    assert sorted(kept) == ["large", "small"]
    opened = []
    monkeypatch.setattr(type(store), "open_read", lambda self, key: opened.append(key) or io.BytesIO())
    for name in kept:
        Checkpoint._from_store(store, verified=True, kept=kept).open(name).close()
    assert opened == ["large"]
    writer.close()
