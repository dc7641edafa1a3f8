from __future__ import annotations

import errno
import ftplib
import logging
import os
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import Checkpoint
from holdfast.errors import (
    ConfigurationError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    StoreExistsError,
    StoreNotFoundError,
)
from holdfast.persistence.digest import FileHasher
from holdfast.secrecy import private_channel
from holdfast.stores import fsspec_probe, fsspec_traits, fsspec_write, open_store, plain_filesystem
from holdfast.stores.fsspec_errors import cause_of, fsspec_error
from holdfast.stores.fsspec_keys import key_of, name_of
from holdfast.stores.fsspec_session import CallFailedError, NoAnswerError, Session
from holdfast.stores.fsspec_store import FsspecStore
from holdfast.stores.fsspec_traits import Traits, escape_in
from holdfast.stores.local import LocalStore
from holdfast.testing.store import put

pytest.importorskip("fsspec", reason='needs fsspec, which is not installed: pip install "fsspec"')

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from support.file_systems import BareFileSystem, BreakableFileSystem, ElsewhereFileSystem, RefusingFileSystem
from support.waiting import wait_until

_SECRET = "hunter2-and-more"
_TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("%\udc80\udcff\n02579AFf.: "), min_size=1, max_size=20)


class AnswerError(Exception):
    """What clients of HTTP raise: nobody else's class, with the status somewhere in it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status} for https://user:{_SECRET}@host/x")
        self.status = status


class SSHException(Exception):  # noqa: N818 - paramiko's name for it
    pass


class AuthenticationException(Exception):  # noqa: N818 - as above
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), StoreNotFoundError),
        (OSError(errno.ENOTDIR, "x"), StoreNotFoundError),
        (AnswerError(404), StoreNotFoundError),
        (FileExistsError("x"), StoreExistsError),
        (AnswerError(412), StoreExistsError),
        (PermissionError("x"), StorageAccessError),
        (AnswerError(403), StorageAccessError),
        (AuthenticationException("x"), StorageAccessError),
        (TimeoutError("x"), StorageUnavailableError),
        (ConnectionResetError("x"), StorageUnavailableError),
        (EOFError("x"), StorageUnavailableError),
        (SSHException("Server connection dropped"), StorageUnavailableError),
        (AnswerError(503), StorageUnavailableError),
        (OSError(errno.EIO, "x"), StorageUnavailableError),
        (OSError("Socket is closed"), StorageUnavailableError),
        (OSError("cannot read from timed out object"), StorageUnavailableError),
        (ftplib.error_temp("421 closing control connection"), StorageUnavailableError),
        (ftplib.error_temp("450 no such file"), StorageError),
        (OSError("Failure"), StorageError),
        (OSError(errno.ENOSPC, "x"), StorageError),
        (NotImplementedError("x"), StorageError),
        (ValueError("x"), StorageError),
    ],
)
def test_an_error_has_the_kind_that_says_what_to_do(error: Exception, kind: type[StorageError]) -> None:
    found = fsspec_error("read", "elsewhere://host/x", error, [_SECRET])
    assert type(found) is kind
    assert "elsewhere://host/x" in str(found)
    assert _SECRET not in str(found)


def test_a_full_disk_is_known_by_its_number() -> None:
    cause = cause_of(OSError(errno.ENOSPC, f"no room for {_SECRET}"))
    assert cause is not None
    assert cause.errno == errno.ENOSPC
    assert _SECRET not in str(cause)


@given(
    st.lists(_TEXTS.filter(lambda text: "/" not in text and text not in (".", "..")), min_size=1, max_size=3), _TEXTS
)
def test_every_key_has_a_name_of_its_own_and_comes_back(parts: list[str], other: str) -> None:
    key = "/".join(parts)
    for escape, odd in (("%", "*?[]{}#:;\\\"'<>|\n"), ("~", "%*?[]{}#:;\\\"'<>|\n")):
        name = name_of(key, escape)
        name.encode()
        assert not set(name) & set(odd)
        assert not any(part.endswith((".", " ")) for part in name.split("/"))
        assert key_of(name, escape) == key
        if "/" not in other and other not in (".", ".."):
            assert (name_of(other, escape) == name) is (other == key)


def test_where_the_client_leaves_a_percent_sign_as_it_is_names_have_none() -> None:
    assert escape_in("webdav://host/x", None) == "~"
    assert escape_in("sftp://host/x", None) == "%"
    assert name_of("100%/a:b", "~") == "100~25/a~3Ab"


@pytest.mark.parametrize("key", ["100%", "a%41", "a b", "ünïcödé", "a+b&c=d", "shard-0/model.safetensors"])
def test_a_usual_name_stays_as_it_is(key: str) -> None:
    assert name_of(key) == key


@pytest.mark.parametrize("wrap", ["plain", "directory", "arrow", "arrow subtree", "arrow in fsspec"])
def test_what_is_this_machine_in_the_end_is_the_local_store(tmp_path: Path, wrap: str) -> None:
    path: str = str(tmp_path / "runs")
    filesystem: Any = LocalFileSystem()
    if wrap == "directory":
        filesystem, path = DirFileSystem(path=str(tmp_path), fs=filesystem), "runs"
    elif wrap.startswith("arrow"):
        fs = pytest.importorskip("pyarrow.fs", reason='needs pyarrow, which is not installed: pip install "pyarrow"')
        filesystem = fs.LocalFileSystem()
        if wrap == "arrow subtree":
            filesystem, path = fs.SubTreeFileSystem(str(tmp_path), filesystem), "runs"
        elif wrap == "arrow in fsspec":
            from fsspec.implementations.arrow import ArrowFSWrapper

            filesystem = ArrowFSWrapper(filesystem)
    store = open_store(path, filesystem)
    assert store == LocalStore(tmp_path / "runs")
    # What is shown of it leads back to it, with the file system that was given and with the one that is shown.
    assert open_store(store.url, filesystem) == store
    assert open_store(store.url, plain_filesystem(filesystem)) == store


def test_what_only_derives_from_the_local_file_system_is_not_it(tmp_path: Path) -> None:
    filesystem = ElsewhereFileSystem()
    assert isinstance(open_store(str(tmp_path), filesystem), FsspecStore)
    assert plain_filesystem(filesystem) is filesystem


@pytest.mark.parametrize(
    ("path", "filesystem", "options", "says"),
    [
        ("nosuch://x/y", None, None, "'nosuch', which neither Holdfast nor fsspec knows"),
        ("memory://x", None, {"glob": 1}, "'glob', which 'memory://x' does not know; there are: .*global_store"),
        ("simplecache::memory://x", None, None, "chains"),
        ("/x", 7, None, "builtins.int is no file system"),
        ("/x", LocalFileSystem(), {"a": 1}, "has its own already"),
        ("/x", None, {"a": 1}, "is a path"),
        ("hdfs:/x", None, None, "no_error"),
    ],
)
def test_what_cannot_be_a_store_is_refused_at_once(path: str, filesystem: Any, options: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match="pathlib" if says == "no_error" else says):
        open_store(path, filesystem, options)


def test_a_url_shows_no_secret_and_neither_does_anything_that_is_said_of_it() -> None:
    store = FsspecStore(f"ftp://user:{_SECRET}@127.0.0.1:9/x", options={"password": _SECRET, "timeout": 1})
    with pytest.raises(StorageUnavailableError) as caught:
        store.read("a")
    shown = f"{store!r} {store.url} {caught.value} {caught.value.__cause__!r}"
    assert _SECRET not in shown
    assert "ftp://127.0.0.1:9/x" in shown


def test_a_pickle_has_credentials_between_processes_of_the_job_only(tmp_path: Path) -> None:
    of_url = FsspecStore(f"ftp://user:{_SECRET}@127.0.0.1:9/x", options={"acct": "a", "password": _SECRET})
    of_object = FsspecStore(str(tmp_path), BareFileSystem(secret=_SECRET))
    for store in (of_url, of_object):
        data = pickle.dumps(store)
        assert _SECRET.encode() not in data
        assert pickle.loads(data).url == store.url
        with pytest.raises(ConfigurationError, match="holds no credentials"):
            pickle.loads(data).read("a")
        with private_channel():
            again = pickle.loads(cloudpickle.dumps(store))
        assert again == store
    of_object.write("a", b"1")
    assert again.read("a") == b"1"
    checkpoint = Checkpoint(str(tmp_path), BareFileSystem(secret=_SECRET))
    assert _SECRET.encode() not in pickle.dumps(checkpoint)
    assert pickle.loads(pickle.dumps(checkpoint)).path == str(tmp_path)


def test_one_without_credentials_works_from_any_pickle(tmp_path: Path) -> None:
    store = FsspecStore(str(tmp_path), ElsewhereFileSystem())
    store.write("a", b"1")
    again = pickle.loads(pickle.dumps(store.child("b")))
    assert again == store.child("b")
    assert hash(again) == hash(store.child("b"))
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_equal_paths_in_two_file_systems_are_two_checkpoints(tmp_path: Path) -> None:
    one, other = (Checkpoint(str(tmp_path), BareFileSystem(secret=each)) for each in ("a", "b"))
    assert one == Checkpoint(str(tmp_path), BareFileSystem(secret="a"))
    assert one != other
    assert one.filesystem == BareFileSystem(secret="a")


class SilentFileSystem(ElsewhereFileSystem):
    """Does not answer until it is told to."""

    protocol = "silent"
    answers = threading.Event()

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        self.answers.wait()
        return super().cat_file(*arguments, **options)


def test_a_call_that_does_not_come_back_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FsspecStore(str(tmp_path), SilentFileSystem())
    try:
        monkeypatch.setenv("HOLDFAST_STORAGE_TIMEOUT_S", "0.1")
        monkeypatch.setattr("holdfast.stores.fsspec_connection._QUICK_S", 0.05)
        begun_s = time.monotonic()
        with pytest.raises(StorageUnavailableError, match=r"no answer came within 0 s; .*HOLDFAST_STORAGE_TIMEOUT_S"):
            store.read("a")
        assert time.monotonic() - begun_s < 10
    finally:
        SilentFileSystem.answers.set()


class HeldFileSystem(BareFileSystem):
    """Keeps who writes a large file until it is told to go on."""

    protocol = "held"
    begun = threading.Event()
    goes_on = threading.Event()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and "large" in path:
            self.begun.set()
            self.goes_on.wait()
        return super()._open(path, mode=mode, **options)


def test_no_record_waits_behind_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_STORAGE_TIMEOUT_S", "20")
    store = FsspecStore(str(tmp_path / "store"), HeldFileSystem())
    upload = threading.Thread(target=put, args=(store, "large", tmp_path, b"1"))
    upload.start()
    try:
        assert HeldFileSystem.begun.wait(20)
        store.write("heartbeat", b"2")
        assert store.read("heartbeat") == b"2"
    finally:
        HeldFileSystem.goes_on.set()
        upload.join()
    assert store.read("large") == b"1"


def test_the_limit_of_a_call_counts_from_its_turn() -> None:
    session = Session(None, concurrent=False)
    begun, goes_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        begun.set()
        goes_on.wait()

    holder = threading.Thread(target=session.run, args=(hold, 60))
    holder.start()
    assert begun.wait(20)
    release = threading.Timer(2.0, goes_on.set)
    release.start()
    assert session.run(lambda _: "answer", 1.5) == "answer"
    holder.join()


def test_who_waits_behind_a_call_that_does_not_come_back_is_told() -> None:
    session = Session(None, concurrent=False)
    goes_on = threading.Event()
    try:
        with pytest.raises(NoAnswerError):
            session.run(lambda _: goes_on.wait(), 0.1)
        with pytest.raises(CallFailedError) as caught:
            session.run(lambda _: None, 60)
        assert isinstance(caught.value.error, ConnectionError)
    finally:
        goes_on.set()


@pytest.mark.parametrize("of_url", [True, False])
def test_a_connection_that_broke_is_made_anew(tmp_path: Path, of_url: bool) -> None:
    fsspec.register_implementation("breakable", BreakableFileSystem, clobber=True)
    root = str(tmp_path / "store")
    store = FsspecStore(f"breakable://{root}") if of_url else FsspecStore(root, BreakableFileSystem())
    large = os.urandom(5 << 20)
    for number in range(2):
        store.write("a", b"%d" % number)
        put(store, f"large-{number}", tmp_path, large)
        BreakableFileSystem.break_all()
        assert store.read("a") == b"%d" % number
        with store.open_read(f"large-{number}") as file:
            BreakableFileSystem.break_all()
            assert file.read() == large
        BreakableFileSystem.break_all()
    store.create("b", b"1")


def test_a_file_system_object_that_shares_its_client_is_not_made_anew(tmp_path: Path) -> None:
    store = FsspecStore(str(tmp_path), BreakableFileSystem(secret=threading.Lock()))
    made = BreakableFileSystem.made
    put(store, "a", tmp_path, b"1")
    BreakableFileSystem.break_all()
    with pytest.raises(StorageUnavailableError):
        store.read("a")
    assert BreakableFileSystem.made == made


def test_a_part_of_a_file_that_cannot_be_removed_is_removed_by_the_next_try(tmp_path: Path) -> None:
    class Breaks(FileHasher):
        def update(self, data: bytes | bytearray | memoryview, /) -> None:
            BreakableFileSystem.broken = sys.maxsize

    store, large = FsspecStore(str(tmp_path / "store"), BreakableFileSystem()), os.urandom(5 << 20)
    try:
        with pytest.raises(StorageUnavailableError) as caught:
            put(store, "a", tmp_path, large, hasher=Breaks(None))
    finally:
        BreakableFileSystem.broken = BreakableFileSystem.made
    assert caught.value.may_pass
    assert (tmp_path / "store" / "a").exists()
    put(store, "a", tmp_path, large)
    assert store.read("a") == large


class LateFileSystem(BareFileSystem):
    """Opens a file for writing, which empties it, when who has asked has long given up."""

    protocol = "late"
    opens: ClassVar[list[threading.Event]] = []

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and self.opens:
            self.opens.pop().wait()
        return super()._open(path, mode=mode, **options)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # nobody is left to close what is opened late
def test_what_is_opened_late_empties_no_file_that_another_try_has_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_STORAGE_TIMEOUT_S", "1")
    store, large = FsspecStore(str(tmp_path / "store"), LateFileSystem()), os.urandom(5 << 20)
    store.write("record", b"1")
    opens = threading.Event()
    LateFileSystem.opens.append(opens)
    for _ in range(2):  # the second waits behind the first
        with pytest.raises(StorageUnavailableError):
            put(store, "a", tmp_path, large)
    assert store.read("record") == b"1"
    opens.set()
    monkeypatch.setenv("HOLDFAST_STORAGE_TIMEOUT_S", "60")
    wait_until(lambda: is_stored(store, tmp_path, large), "it is stored")
    assert store.read("a") == large


def is_stored(store: FsspecStore, tmp_path: Path, data: bytes) -> bool:
    try:
        put(store, "a", tmp_path, data)
    except StorageUnavailableError:
        return False
    return True


def test_an_error_of_one_call_leaves_the_connection_to_the_others(tmp_path: Path) -> None:
    store = FsspecStore(str(tmp_path / "store"), BreakableFileSystem())
    store.write("a", b"0")
    made = BreakableFileSystem.made

    def refuse(_: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    with pytest.raises(StorageUnavailableError):
        store._connection.call("read", "a", refuse)
    store.write("a", b"1")
    assert BreakableFileSystem.made == made


def test_a_server_that_takes_one_connection_is_used_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Lone(BareFileSystem):
        protocol = "lone"
        num_made = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            type(self).num_made += 1
            if self.num_made > 1:
                raise ConnectionRefusedError("421 too many connections")

    store, large = FsspecStore(str(tmp_path / "store"), Lone()), os.urandom(5 << 20)
    put(store, "a", tmp_path, large)
    assert store.read("a") == large
    assert "takes no second connection" in caplog.text


class PipeliningFileSystem(BareFileSystem):
    """Its files are as paramiko's: they say what was refused when somebody waits for the answers, and else never."""

    protocol = "pipelining"
    requests = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return PipeliningFile(open(path, mode))


class PipeliningFile:
    refuses = False

    def __init__(self, file: Any) -> None:
        self._file = file
        self._is_pipelined = False
        self._unanswered = 0

    def __enter__(self) -> PipeliningFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_pipelined(self, pipelined: bool = True) -> None:
        self._is_pipelined = pipelined

    def write(self, data: Any) -> None:
        self._file.write(data)
        self._unanswered += -(-len(data) // (32 << 10))
        if not self._is_pipelined and self._unanswered:
            PipeliningFileSystem.requests += 1
            self._unanswered = 0
            if self.refuses:
                raise OSError(errno.ENOSPC, "full")

    def read(self) -> Any:
        return self._file.read()

    def readv(self, chunks: list[tuple[int, int]]) -> Any:
        for start, length in chunks:
            self._file.seek(start)
            yield self._file.read(length)

    def close(self) -> None:
        assert not self._unanswered or self.refuses
        self._file.close()


def test_a_file_of_sftp_costs_a_round_trip_a_piece_and_a_refusal_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{PipeliningFileSystem.__module__}.{PipeliningFileSystem.__qualname__}"
    monkeypatch.setitem(fsspec_traits._KNOWN, name, Traits(pipelines=True))
    store = FsspecStore(str(tmp_path / "store"), PipeliningFileSystem())
    data = os.urandom((9 << 20) + 1)
    put(store, "large", tmp_path, data)
    assert PipeliningFileSystem.requests == 3
    put(store, "small", tmp_path, data[: 1 << 20])
    put(store, "empty", tmp_path, b"")
    assert PipeliningFileSystem.requests == 4
    for key, expected in (("large", data), ("small", data[: 1 << 20]), ("empty", b"")):
        with store.open_read(key) as file:
            assert file.read() == expected
    monkeypatch.setattr(PipeliningFile, "refuses", True)
    for size in (1 << 20, 5 << 20):
        with pytest.raises(StorageError, match="no space left"):
            put(store, "refused", tmp_path, data[:size])
    assert not store.exists("refused")


class FlakyFileSystem(ElsewhereFileSystem):
    """Fails a number of times, then works."""

    protocol = "flaky"
    left = 2

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        if FlakyFileSystem.left:
            FlakyFileSystem.left -= 1
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return super().cat_file(*arguments, **options)


def test_what_passes_by_itself_is_tried_again(tmp_path: Path) -> None:
    store = FsspecStore(str(tmp_path), FlakyFileSystem())
    (tmp_path / "a").write_bytes(b"1")
    assert store.read("a") == b"1"
    assert FlakyFileSystem.left == 0


class ForgetfulFileSystem(ElsewhereFileSystem):
    """Says that it has written what it has not, as pyarrow does of S3."""

    protocol = "forgetful"
    keeps = 3

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        super().pipe_file(path, value[: self.keeps], mode=mode)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(os.devnull if mode == "wb" and "large" in path else path, mode=mode, **options)


def test_a_write_is_not_believed_but_looked_at(tmp_path: Path) -> None:
    store = FsspecStore(str(tmp_path / "store"), ForgetfulFileSystem())
    for write in (
        lambda: store.write("a", b"longer"),
        lambda: put(store, "a", tmp_path, b"longer"),
        lambda: put(store, "large", tmp_path, b"x" * (5 << 20)),
    ):
        with pytest.raises(StorageUnavailableError):
            write()
    assert list(store.list(recursive=True)) == []


def test_a_listing_that_the_file_system_remembers_is_not_believed(tmp_path: Path) -> None:
    store = FsspecStore(str(tmp_path), BareFileSystem())
    assert list(store.list()) == []
    (tmp_path / "by-another-process").write_bytes(b"")
    assert [entry.key for entry in store.list()] == ["by-another-process"]
    assert next(iter(store.list())).mtime_s > 0


@pytest.fixture
def _warns_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec_probe, "_warned", set())


@pytest.mark.usefixtures("_warns_anew")
@pytest.mark.parametrize(
    ("filesystem", "says"),
    [
        (ElsewhereFileSystem(), []),
        (RefusingFileSystem(), ["cannot replace a file in one step"]),
        (
            BareFileSystem(),
            ["two drivers start one run in the same instant", "cannot replace a file in one step", "manifest"],
        ),
    ],
)
def test_what_is_weaker_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, filesystem: Any, says: list[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            FsspecStore(str(tmp_path), filesystem).prepare()
    assert len(caplog.records) == bool(says)
    assert all(each in caplog.text for each in says)
    assert list(tmp_path.iterdir()) == []


def test_a_creator_that_died_holds_up_the_next_one_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_write, "_GUARD_S", 0.2)
    store = FsspecStore(str(tmp_path), ElsewhereFileSystem())

    def die(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as dying:
        dying.setattr(fsspec_write, "move", die)
        dying.setattr(fsspec_write, "remove_quietly", lambda *_: None)
        with pytest.raises(SystemExit):
            store.create("epochs/1", b"dead")
    assert not store.exists("epochs/1")
    assert len(list((tmp_path / "epochs").iterdir())) == 1
    store.create("epochs/1", b"living")
    assert store.read("epochs/1") == b"living"
    assert [entry.key for entry in store.list("epochs")] == ["epochs/1"]


def test_of_creators_that_know_nothing_of_each_other_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLock:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    # As in two processes: no lock of ours keeps them apart.
    monkeypatch.setattr(fsspec_write, "_creating", NoLock())
    stores = [FsspecStore(str(tmp_path), ElsewhereFileSystem(skip_instance_cache=True)) for _ in range(4)]
    for number in range(10):
        won: list[int] = []
        start = threading.Barrier(len(stores))

        def create(which: int, key: str, start: threading.Barrier, won: list[int]) -> None:
            start.wait()
            try:
                stores[which].create(key, b"%d" % which)
            except StoreExistsError:
                return
            won.append(which)

        threads = [
            threading.Thread(target=create, args=(which, f"e/{number}", start, won)) for which in range(len(stores))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert stores[0].read(f"e/{number}") == b"%d" % won[0]
