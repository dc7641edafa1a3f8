"""Guarantee 3 on the way in: what is stored is byte for byte what was reported, or an error that names the file."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.errors import CheckpointSourceError, ShardModifiedError, StorageError, StorageUnavailableError
from holdfast.persistence import transfer
from holdfast.persistence.digest import FileHasher
from holdfast.persistence.release import release
from holdfast.persistence.retry import RetryPolicy
from holdfast.persistence.staging import stage
from holdfast.persistence.upload import Uploader
from holdfast.records import ShardReceipt
from holdfast.stores.base import Hasher, Store
from holdfast.stores.local import LocalStore
from support.remote_like_store import RemoteLikeStore
from support.waiting import wait_until

LIMIT_S = 30


@contextmanager
def uploading(*, limit_s: float = LIMIT_S, disk_full_s: float = LIMIT_S) -> Iterator[Uploader]:
    made = Uploader(4, retry=RetryPolicy(limit_s, first_wait_s=0.001, longest_wait_s=0.01, disk_full_s=disk_full_s))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def uploader() -> Iterator[Uploader]:
    with uploading() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "a").write_bytes(b"aaaa")
    (directory / "sub/b").write_bytes(b"b" * 5_000_000)
    (directory / "empty").mkdir()
    (directory / "link").symlink_to("sub/b")
    (directory / ".metadata.json").write_text('{"k": 1}')
    return directory


class FlakyStore(LocalStore):
    """Fails the first puts of chosen keys with an error number."""

    def __init__(self, root: Path, failures: dict[str, list[int]]) -> None:
        super().__init__(root)
        self.failures = failures
        self.puts: list[str] = []

    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        self.puts.append(key)
        left = self.failures.get(key)
        if left:
            raise StorageError(f"Cannot store {key!r}: the disk is full") from OSError(left.pop(0), "injected")
        super().put_file(key, source, size_bytes=size_bytes, mode=mode, hasher=hasher)


def digest_of(data: bytes) -> str:
    hasher = FileHasher()
    hasher.update(data)
    return hasher.text()


def by_path(receipt: ShardReceipt) -> dict[str, tuple[str, int, str | None, str | None]]:
    return {file.path: (file.kind, file.size_bytes, file.digest, file.target) for file in receipt.files}


@pytest.mark.parametrize("adopt", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
def test_a_shard_arrives_whole_with_a_receipt(
    tmp_path: Path, source: Path, uploader: Uploader, adopt: bool, is_local: bool
) -> None:
    store: Store = LocalStore(tmp_path / "store") if is_local else RemoteLikeStore(tmp_path / "store")
    shard = stage(source, 2, adopt=adopt, remove=adopt)
    told: list[int] = []
    receipt = uploader.store_shard(shard, store, "p/q", on_bytes=told.append).result(LIMIT_S)
    assert by_path(receipt) == {
        "a": ("file", 4, digest_of(b"aaaa"), None),
        "empty": ("directory", 0, None, None),
        "link": ("symlink", 0, None, "sub/b"),
        "sub/b": ("file", 5_000_000, digest_of(b"b" * 5_000_000), None),
    }
    assert (receipt.rank, receipt.metadata) == (2, '{"k": 1}')
    assert sum(told) == 5_000_004
    assert store.read("p/q/sub/b") == b"b" * 5_000_000
    if is_local:
        place = store.local_path("p/q")
        assert place is not None
        assert os.readlink(place / "link") == "sub/b"
        assert (place / "empty").is_dir()
        assert (place / "a").samefile(source / "a") == adopt
    release([shard])
    assert source.exists() != adopt


def test_what_has_come_to_lie_in_a_released_directory_meanwhile_stays(source: Path) -> None:
    shard = stage(source, 0, remove=True)
    (source / "a").write_bytes(b"next")
    (source / "sub/new").write_bytes(b"x")
    release([shard])
    assert sorted(str(each.relative_to(source)) for each in source.rglob("*") if each.is_file()) == [
        ".metadata.json", "a", "sub/new",
    ]  # fmt: skip


def test_a_file_with_another_name_is_copied_not_adopted(source: Path, uploader: Uploader, store: LocalStore) -> None:
    os.link(source / "a", source.parent / "still-in-use")
    uploader.store_shard(stage(source, 0, adopt=True), store, "p").result(LIMIT_S)
    (source.parent / "still-in-use").write_bytes(b"zzzz")
    assert store.read("p/a") == b"aaaa"


def test_many_files_arrive_in_the_order_of_the_shard(tmp_path: Path, uploader: Uploader, store: LocalStore) -> None:
    directory = tmp_path / "many"
    for number in range(1000):
        place = directory / f"d{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}").write_bytes(str(number).encode() * (20_000 if number % 100 == 0 else 1))
    shard = stage(directory, 0)
    receipt = uploader.store_shard(shard, store, "").result(LIMIT_S)
    assert [file.path for file in receipt.files] == [file.path for file in shard.files]
    for file in receipt.files:
        assert file.digest == digest_of(store.read(file.path))


def test_an_empty_shard_gives_an_empty_receipt(tmp_path: Path, uploader: Uploader, store: LocalStore) -> None:
    (tmp_path / "nothing").mkdir()
    assert uploader.store_shard(stage(tmp_path / "nothing", 0), store, "p").result(LIMIT_S).files == ()


def change_size(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def change_bytes(path: Path) -> None:
    path.write_bytes(b"AAAA")


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("sub/b")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [change_size, change_bytes, truncate, remove, replace_by_link, replace_by_pipe])
@pytest.mark.parametrize("adopt", [False, True])
def test_a_file_changed_after_the_report_fails_by_name(
    source: Path, uploader: Uploader, store: LocalStore, change, adopt: bool
) -> None:
    shard = stage(source, 0, adopt=adopt)
    os.utime(source / "a", ns=(0, 0))  # the clock of files may be too coarse to tell two writes apart
    change(source / "a")
    with pytest.raises(ShardModifiedError, match=r"source/a' changed after it was reported"):
        uploader.store_shard(shard, store, "p").result(LIMIT_S)


def test_a_file_changed_while_it_is_read_fails_by_name(
    source: Path, uploader: Uploader, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalStore.put_file

    def slow(self: LocalStore, key: str, descriptor: int, **rest) -> None:
        real(self, key, descriptor, **rest)
        os.utime(descriptor, ns=(1, 1))

    monkeypatch.setattr(LocalStore, "put_file", slow)
    with pytest.raises(ShardModifiedError, match="its time stamps moved"):
        uploader.store_shard(stage(source, 0), store, "p").result(LIMIT_S)


def test_the_second_of_two_ranks_with_one_name_writes_nothing(
    tmp_path: Path, uploader: Uploader, store: LocalStore
) -> None:
    digests = []
    for rank, text in enumerate([b"first", b"other"]):
        directory = tmp_path / f"rank-{rank}"
        directory.mkdir()
        (directory / "same").write_bytes(text)
        for adopt in (False, True):
            receipt = uploader.store_shard(stage(directory, rank, adopt=adopt), store, "p").result(LIMIT_S)
            digests.append(receipt.files[0].digest)
    assert store.read("p/same") == b"first"
    assert digests == [digest_of(b"first")] * 2 + [digest_of(b"other")] * 2


def test_ranks_that_store_at_once_agree_on_one_copy(tmp_path: Path, uploader: Uploader, store: LocalStore) -> None:
    futures = []
    for rank in range(4):
        directory = tmp_path / f"rank-{rank}"
        directory.mkdir()
        for number in range(20):
            (directory / f"{number}").write_bytes(b"x" * number * 10_000)
        futures.append(uploader.store_shard(stage(directory, rank), store, "p"))
    receipts = [by_path(future.result(LIMIT_S)) for future in futures]
    assert receipts[0] == receipts[1] == receipts[2] == receipts[3]
    for number in range(20):
        assert store.read(f"p/{number}") == b"x" * number * 10_000


@pytest.mark.parametrize("number", [errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT])
def test_what_passes_by_itself_is_tried_again(tmp_path: Path, source: Path, uploader: Uploader, number: int) -> None:
    store = FlakyStore(tmp_path / "store", {"p/a": [number] * 4})
    told: list[int] = []
    uploader.store_shard(stage(source, 0), store, "p", on_bytes=told.append).result(LIMIT_S)
    assert store.puts.count("p/a") == 5
    assert store.read("p/a") == b"aaaa"
    assert sum(told) == 5_000_004


def test_what_does_not_pass_fails_with_the_cause_and_ends_the_rest(tmp_path: Path, source: Path) -> None:
    store = FlakyStore(tmp_path / "store", {"p/a": [errno.EIO] * 99_999})
    with uploading(limit_s=2.0) as uploader, pytest.raises(StorageError) as caught:
        uploader.store_shard(stage(source, 0), store, "p").result(LIMIT_S)
    assert isinstance(caught.value.__cause__, OSError)
    assert store.puts.count("p/a") > 5


def test_other_errors_are_not_tried_again(tmp_path: Path, source: Path, uploader: Uploader) -> None:
    store = FlakyStore(tmp_path / "store", {"p/a": [errno.EROFS]})
    with pytest.raises(StorageError):
        uploader.store_shard(stage(source, 0), store, "p").result(LIMIT_S)
    assert store.puts.count("p/a") == 1


def test_a_full_disk_gets_time_and_says_so(
    tmp_path: Path, source: Path, uploader: Uploader, caplog: pytest.LogCaptureFixture
) -> None:
    store = FlakyStore(tmp_path / "store", {"p/a": [errno.ENOSPC] * 2})
    uploader.store_shard(stage(source, 0), store, "p").result(LIMIT_S)
    assert store.read("p/a") == b"aaaa"
    assert "tried again" in caplog.text
    assert "disk is full" in caplog.text
    store.failures["q/a"] = [errno.ENOSPC] * 99_999
    with uploading(disk_full_s=0.1) as uploader, pytest.raises(StorageError, match="disk is full"):
        uploader.store_shard(stage(source, 0), store, "q").result(LIMIT_S)


def test_a_read_error_of_an_adopted_file_is_tried_again(
    source: Path, uploader: Uploader, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = transfer.digest_fd, [OSError(errno.EIO, "injected"), OSError(errno.EIO, "injected")]

    def flaky(descriptor: int, size_bytes: int, hasher: FileHasher | None = None) -> str:
        if failures:
            raise failures.pop()
        return real(descriptor, size_bytes, hasher)

    monkeypatch.setattr(transfer, "digest_fd", flaky)
    receipt = uploader.store_shard(stage(source, 0, adopt=True), store, "p").result(LIMIT_S)
    assert by_path(receipt)["a"][2] == digest_of(b"aaaa")


def test_an_unreadable_file_is_the_users_to_mend(
    source: Path, uploader: Uploader, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path, *rest, **more) -> int:
        if str(path).endswith("source/a"):
            raise PermissionError(errno.EACCES, "no")
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointSourceError, match=r"source/a' cannot be read: Permission denied"):
        uploader.store_shard(stage(source, 0), store, "p").result(LIMIT_S)


class HeldUpStore(LocalStore):
    """Waits in the middle of a large file until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reached = threading.Event()
        self.go = threading.Event()

    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        if size_bytes > 1_000_000:
            self.reached.set()
            assert self.go.wait(LIMIT_S)
        super().put_file(key, source, size_bytes=size_bytes, mode=mode, hasher=hasher)


def test_a_cancelled_upload_ends_with_its_last_thread_and_leaves_no_partial_file(
    tmp_path: Path, source: Path, uploader: Uploader
) -> None:
    store = HeldUpStore(tmp_path / "store")
    future = uploader.store_shard(stage(source, 0), store, "p")
    assert store.reached.wait(LIMIT_S)
    future.cancel()
    assert not future.done(), "a thread is still at it"
    store.go.set()
    with pytest.raises(StorageError, match="was stopped"):
        future.result(LIMIT_S)
    assert not store.exists("p/sub/b")


def test_a_failure_after_the_upload_was_stopped_promises_no_other_try(
    tmp_path: Path, source: Path, uploader: Uploader, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(HeldUpStore):
        def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
            super().put_file(key, source, size_bytes=size_bytes, mode=mode, hasher=None)
            raise StorageUnavailableError("did not answer")

    store = Fails(tmp_path / "store")
    (source / "a").unlink()
    future = uploader.store_shard(stage(source, 0), store, "p")
    assert store.reached.wait(LIMIT_S)
    future.cancel()
    store.go.set()
    with pytest.raises(StorageError, match="was stopped"):
        future.result(LIMIT_S)
    assert "tried again" not in caplog.text


def test_closing_ends_what_is_on_its_way(tmp_path: Path, source: Path) -> None:
    uploader = Uploader(2)
    store = HeldUpStore(tmp_path / "store")
    future = uploader.store_shard(stage(source, 0), store, "p")
    assert store.reached.wait(LIMIT_S)
    closing = threading.Thread(target=uploader.close)
    closing.start()
    wait_until(future.stop_event.is_set, "it is asked to stop")  # type: ignore[attr-defined]
    assert not future.done()
    store.go.set()
    closing.join(LIMIT_S)
    assert isinstance(future.exception(LIMIT_S), StorageError)
    uploader.close()
    with pytest.raises(StorageError, match="being closed"):
        uploader.store_shard(stage(source, 0), store, "p").result(LIMIT_S)
    assert [thread.name for thread in threading.enumerate() if "holdfast-upload" in thread.name] == []


def test_slow_stores_get_more_threads(tmp_path: Path, uploader: Uploader) -> None:
    directory = tmp_path / "many"
    directory.mkdir()
    for number in range(200):
        (directory / f"{number}").touch()
    threads: set[str] = set()

    class SlowStore(LocalStore):
        def put_file(self, key: str, source: int, **rest) -> None:
            threads.add(threading.current_thread().name)
            threading.Event().wait(0.005)  # much longer than what else there is to do
            super().put_file(key, source, **rest)

    uploader.store_shard(stage(directory, 0), SlowStore(tmp_path / "store"), "p").result(LIMIT_S)
    assert len(threads) == 4


def test_registering_digests_in_place_and_writes_nothing(store: LocalStore, uploader: Uploader, tmp_path: Path) -> None:
    store.write("run/mine/a", b"aaaa")
    store.write("elsewhere/a", b"aaaa")
    place = store.local_path("run/mine")
    before = (place / "a").stat().st_ctime_ns
    receipt = uploader.register_shard(stage(place, 1), store, "run/mine").result(LIMIT_S)
    assert by_path(receipt) == {"a": ("file", 4, digest_of(b"aaaa"), None)}
    assert (place / "a").stat().st_ctime_ns == before
    with pytest.raises(CheckpointSourceError, match="does not lie at"):
        uploader.register_shard(stage(store.local_path("elsewhere"), 1), store, "run/mine").result(LIMIT_S)
    elsewhere = RemoteLikeStore(tmp_path / "remote")
    elsewhere.write("mine/a", b"aaaa")
    remote = uploader.register_shard(stage(place, 1), elsewhere, "mine").result(LIMIT_S)
    assert by_path(remote) == {"a": ("file", 4, None, None)}


class WatchedStore(LocalStore):
    """Notes the priority of the thread that stores."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.niceness: set[int] = set()

    def put_file(self, key: str, source: int, *, size_bytes: int, mode: int, hasher: Hasher | None) -> None:
        self.niceness.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        super().put_file(key, source, size_bytes=size_bytes, mode=mode, hasher=hasher)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_what_is_stored_beside_training_gives_way_to_it(source: Path, uploader: Uploader, tmp_path: Path) -> None:
    here = os.getpriority(os.PRIO_PROCESS, 0)
    store = WatchedStore(tmp_path / "store")
    uploader.store_shard(stage(source, 0), store, "waited-for").result(LIMIT_S)
    assert store.niceness == {here}
    store.niceness.clear()
    handed_over = {"a": os.open(source / "a", os.O_RDONLY), "sub/b": os.open(source / "sub/b", os.O_RDONLY)}
    uploader.store_shard(stage(source, 0), store, "beside", descriptors=handed_over).result(LIMIT_S)
    assert store.niceness == {min(here + 5, 19)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == here


def test_copying_beside_training_leaves_it_a_core_and_starts_no_further_threads(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    most = 0
    guard = threading.Lock()
    running: set[int] = set()

    class CountingStore(LocalStore):
        def put_file(self, key: str, source: int, **rest) -> None:
            nonlocal most
            with guard:
                running.add(threading.get_ident())
                most = max(most, len(running))
            names = {thread.name for thread in threading.enumerate()}
            super().put_file(key, source, **rest)
            assert "holdfast-read" not in names | {thread.name for thread in threading.enumerate()}
            with guard:
                running.discard(threading.get_ident())

    store = CountingStore(tmp_path / "store")
    uploader = Uploader(8, store=store)
    try:
        for number in range(8):
            (source / f"large-{number}").write_bytes(bytes([number]) * 6_000_000)
        shard = stage(source, 0)
        handed_over = {
            file.path: os.open(source / file.path, os.O_RDONLY) for file in shard.files if file.kind == "file"
        }
        uploader.store_shard(shard, store, "c", descriptors=handed_over).result(LIMIT_S)
    finally:
        uploader.close()
    assert most <= 2
