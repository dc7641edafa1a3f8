"""Readers of a checkpoint in a bucket, in threads and processes that come, go and are killed: all see whole files, none leaves any."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.checkpoint import Checkpoint
from holdfast.errors import StorageError
from holdfast.persistence import restore
from holdfast.persistence.restore import default_cache_dir
from holdfast.stores import open_store
from support.reader_forks import DAMAGED, FAILED, WHOLE, ReaderForks, digests, reader_forks
from support.runs import open_run, report
from support.s3_proxy import Fault, Proxy, answer, running_proxy
from support.s3_server import KEYS, S3Server, running_server
from support.waiting import LIMIT_S, wait_until

# So few tries that a test can wait for the end of them.
QUICK = {"max_retries": "1", "retry_timeout": "2"}
FILES = {f"file-{number}": random.Random(number).randbytes(100_000) for number in range(4)}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    # Copies of its own, so that none of another test is found.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    with running_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def forks(_surroundings: None) -> Iterator[ReaderForks]:
    with reader_forks() as forks:
        yield forks


@pytest.fixture
def url_through(server: S3Server, tmp_path: Path) -> Callable[..., str]:
    """Where a checkpoint of `FILES` is, through a proxy or past it."""
    return stored(server, tmp_path, FILES)


def stored(server: S3Server, tmp_path: Path, files: dict[str, bytes]) -> Callable[..., str]:
    bucket = server.make_bucket()
    with contextlib.closing(open_run(open_store(server.url(bucket, "run")))) as writer:
        name = report(writer, tmp_path / "source", files).name

    def url(proxy: Proxy | None = None) -> str:
        return server.url(bucket, f"run/{name}", port=proxy.port if proxy is not None else None, **QUICK)

    return url


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, str]:
    """What a reader is to see of it."""
    (tmp_path / "expected").mkdir()
    for name, data in FILES.items():
        (tmp_path / "expected" / name).write_bytes(data)
    return digests(tmp_path / "expected")


def fetched(proxy: Proxy) -> dict[str, int]:
    """How often each file's bytes were asked for."""
    return {name: count for name in FILES if (count := proxy.count("GET", f"/{name}"))}


def left_over() -> list[str]:
    return sorted(str(path) for path in default_cache_dir().rglob("*"))


def states(directory: str) -> dict[str, tuple[int, int, int]]:
    found = {path: os.stat(path) for path in sorted(Path(directory).rglob("*"))}
    return {path.name: (status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for path, status in found.items()}


def read(url: str, expected: dict[str, str]) -> bool:
    with Checkpoint(url).as_directory() as directory:
        return digests(directory) == expected


def test_nobody_touches_or_fetches_files_that_somebody_reads(
    url_through: Callable[..., str], proxy: Proxy, forks: ReaderForks, expected: dict[str, str]
) -> None:
    url = url_through(proxy)
    with ThreadPoolExecutor(4) as pool, Checkpoint(url).as_directory() as directory:
        before = states(directory)
        with Checkpoint(url).as_directory() as inner, Checkpoint(url).as_directory() as innermost:
            assert directory == inner == innermost
        readers = [forks.start(url, expected, dies=dies) for dies in (False, True, False, True)]
        assert all(pool.map(read, [url] * 4, [expected] * 4))
        assert [forks.join(reader) for reader in readers] == [WHOLE, -signal.SIGKILL] * 2
        assert states(directory) == before
        assert digests(directory) == expected
    assert fetched(proxy) == dict.fromkeys(FILES, 1)
    assert left_over() == []


def test_the_first_to_leave_deletes_nothing_that_others_read(
    url_through: Callable[..., str], proxy: Proxy, forks: ReaderForks, expected: dict[str, str]
) -> None:
    url = url_through(proxy)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    with first, second:
        first.enter_context(Checkpoint(url).as_directory())
        directory = second.enter_context(Checkpoint(url).as_directory())
        before = states(directory)
        # He leaves in another thread than the one in which he came, too.
        leaver = threading.Thread(target=first.close)
        leaver.start()
        leaver.join()
        assert states(directory) == before
        assert digests(directory) == expected
        assert forks.join(forks.start(url, expected)) == WHOLE
        assert states(directory) == before
    assert fetched(proxy) == dict.fromkeys(FILES, 1)
    assert left_over() == []


def other_bytes(_: bytes) -> bytes:
    """As long as the file, and from the very object, as far as the headers say."""
    size_bytes = len(FILES["file-2"])
    head = (
        f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{size_bytes - 1}/{size_bytes}\r\n"
        f'Content-Length: {size_bytes}\r\nETag: "x"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n'
        "Connection: close\r\n\r\n"
    )
    return head.encode() + bytes(size_bytes)


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (Fault(cuts_answer_at=1000), FAILED),  # each try goes on where the last one broke off
        (Fault(answers=answer(403, "AccessDenied")), FAILED),
        (Fault(answers=answer(404, "NoSuchKey")), DAMAGED),
        (Fault(answers=other_bytes), DAMAGED),
        (Fault(stalls=True), -signal.SIGKILL),
    ],
    ids=["cut", "denied", "missing", "other-bytes", "killed"],
)
def test_who_waits_for_a_download_that_fails_fetches_all_anew(
    url_through: Callable[..., str], proxy: Proxy, forks: ReaderForks, expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch, fault: Fault, end: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(restore, "_FIRST_NOTICE_S", 0.0)
    may_fail, waits = threading.Event(), threading.Event()
    first = 0

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(f"Waiting for process {first} to download s3://"):
                waits.set()

    watch = Watch()
    logging.getLogger("holdfast").addHandler(watch)
    proxy.fail(Fault(**{**vars(fault), "method": "GET", "contains": "/file-2", "times": -1, "waits_for": may_fail}))
    if fault.stalls:
        may_fail.set()
    try:
        with ThreadPoolExecutor(1) as pool:
            first = forks.start(url_through(proxy), expected)
            wait_until(lambda: proxy.count("GET", "/file-2") > 0, "the first one fetches")
            # Past the proxy: what fails for the first one does not fail for the second.
            second = pool.submit(read, url_through(), expected)
            assert waits.wait(LIMIT_S)
            if end == -signal.SIGKILL:
                os.kill(first, signal.SIGKILL)
            may_fail.set()
            assert forks.join(first) == end
            assert second.result(LIMIT_S)
    finally:
        logging.getLogger("holdfast").removeHandler(watch)
    assert left_over() == []


def test_what_fails_for_all_is_an_error_for_all_and_leaves_nothing(
    url_through: Callable[..., str], proxy: Proxy, forks: ReaderForks, expected: dict[str, str]
) -> None:
    fault = proxy.fail(Fault("GET", contains="/file-2", times=-1, answers=answer(403, "AccessDenied")))
    url = url_through(proxy)
    with ThreadPoolExecutor(3) as pool:
        readers = [forks.start(url, expected) for _ in range(3)]
        for each in [pool.submit(read, url, expected) for _ in range(3)]:
            with pytest.raises(StorageError, match="file-2"):
                each.result(LIMIT_S)
        assert [forks.join(reader) for reader in readers] == [FAILED] * 3
    assert left_over() == []
    fault.times = 0
    assert read(url, expected)


def test_a_reader_killed_at_any_step_leaves_nothing_that_the_next_does_not_remove(
    server: S3Server, forks: ReaderForks, tmp_path: Path
) -> None:
    files = {name: FILES[name][:1000] for name in ("file-0", "file-1")}
    url = stored(server, tmp_path, files)()
    with Checkpoint(url).as_directory() as directory:
        expected = digests(directory)
    assert sorted(expected) == sorted(files)
    num_remains = 0
    for step in itertools.count(1):
        end = forks.join(forks.start(url, expected, dies_at=step))
        num_remains += bool(left_over())
        assert read(url, expected)
        assert left_over() == [], f"killed at step {step}"
        if end == WHOLE:
            break
        assert end == -signal.SIGKILL
    # Else these were no steps of his.
    assert step > 30
    assert num_remains > step / 2


@pytest.mark.parametrize("seed", range(4))
def test_many_restore_at_once_and_are_killed_at_any_time(
    url_through: Callable[..., str], proxy: Proxy, forks: ReaderForks, expected: dict[str, str], seed: int
) -> None:
    url = url_through(proxy)
    killed = 0
    for wave in range(3):
        before = fetched(proxy)
        found = forks.ask("wave", url=url, expected=expected, seed=3 * seed + wave, processes=8, threads=3)
        assert set(found["ends"]) == {WHOLE}
        after = fetched(proxy)
        # One download for all, and another only for each that may have died while he fetched, or before anybody read.
        assert all(1 <= after[name] - before.get(name, 0) <= 1 + found["early"] for name in FILES)
        killed += found["killed"]
    assert killed == 12
    # Whoever was killed while he left has left something: the next one removes it.
    assert read(url, expected)
    assert left_over() == []
