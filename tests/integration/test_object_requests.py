"""Requests to a bucket: broken off when the end is to come at once, and fewer where there are too many."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import holdfast as train
from holdfast.errors import StorageError
from holdfast.stores import Store, open_store
from holdfast.testing.store import put
from support.drivers import Driver
from support.runs import open_run, report
from support.s3_proxy import SLOW_DOWN, Fault, Proxy, running_proxy
from support.s3_server import S3Server

# Some seconds, were the machine not busy; what is not broken off takes a minute.
SOON_S = 30.0


pytestmark = pytest.mark.usefixtures("keys")


@pytest.fixture
def store(server: S3Server, proxy: Proxy, bucket: str) -> Store:
    return open_store(server.url(bucket, "run", port=proxy.port))


CALLS = {
    "read": lambda store, tmp_path: store.read("key"),
    "open": lambda store, tmp_path: store.open_read("key"),
    "list": lambda store, tmp_path: list(store.list("")),
    "list-all": lambda store, tmp_path: list(store.list("", recursive=True)),
    "create": lambda store, tmp_path: store.create("other", b"data"),
    "delete": lambda store, tmp_path: store.delete("key"),
    "put": lambda store, tmp_path: put(store, "c/file", tmp_path, b"data"),
    "parts": lambda store, tmp_path: put(store, "c/file", tmp_path, os.urandom(20 << 20)),
}


# Nine seconds each, nearly all of them of waiting.
@pytest.mark.parametrize(
    "name",
    [name if name in ("read", "parts", "list-all") else pytest.param(name, marks=pytest.mark.slow) for name in CALLS],
)
def test_who_waits_for_a_silent_server_is_let_go_when_the_end_is_to_come_at_once(
    store: Store, proxy: Proxy, tmp_path: Path, name: str
) -> None:
    store.write("key", b"data")
    proxy.fail(Fault(times=-1, stalls=True))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(CALLS[name], store, tmp_path)
        time.sleep(0.5)
        assert not waiting.done()
        begin_s = time.monotonic()
        store.hurry()
        with pytest.raises(StorageError, match="had not answered when the run was to end at once"):
            waiting.result(SOON_S)
        # And whoever comes then does not wait for long.
        with pytest.raises(StorageError, match="had not answered"):
            store.read("key")
        assert time.monotonic() - begin_s < SOON_S
    proxy.heal()
    assert store.read("key") == b"data"  # a server that does answer is still heard
    store.hurry(on=False)
    proxy.fail(Fault("GET", waits_for=threading.Event()))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.read, "key")
        with pytest.raises(TimeoutError):
            waiting.result(1.5)
        store.hurry()
    store.hurry(on=False)


class Interrupted(Exception):  # noqa: N818 - a signal
    pass


@pytest.mark.parametrize("name", ["read", "list", "parts"])
def test_a_signal_ends_the_wait_for_a_silent_server(store: Store, proxy: Proxy, tmp_path: Path, name: str) -> None:
    def handler(*_: object) -> None:
        raise Interrupted

    def call() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        CALLS[name](store, tmp_path)

    proxy.fail(Fault(times=-1, stalls=True))
    earlier = signal.signal(signal.SIGALRM, handler)
    try:
        begin_s = time.monotonic()
        with pytest.raises(Interrupted):
            call()
        assert time.monotonic() - begin_s < SOON_S
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


DRIVER = """
import sys, tempfile, time
from pathlib import Path
import holdfast as train
base = Path(sys.argv[2])
def loop():
    for step in range(10_000):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model").write_text("weights")
            train.report({"step": step}, train.Checkpoint(directory))
        (base / "up").touch()
try:
    train.DataParallelTrainer(loop, run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet")).fit()
except train.TrainingInterrupted as error:
    print("interrupted", error.result.checkpoint is not None, flush=True)
"""


def test_a_bucket_that_went_silent_does_not_hold_up_the_second_ctrl_c(
    server: S3Server, bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    url = server.url(bucket, "exp", port=proxy.port)
    with Driver(DRIVER, url, tmp_path) as driver:
        driver.await_file(tmp_path / "up")
        proxy.fail(Fault(times=-1, stalls=True))
        time.sleep(1)
        driver.send_signal(signal.SIGINT)
        driver.await_words("stopping: workers are asked to end")  # a second one that comes sooner is lost in the first
        time.sleep(1)
        driver.send_signal(signal.SIGINT)
        out, _ = driver.communicate(timeout=SOON_S)
    assert out.split() == ["interrupted", "True"]
    run = train.Run(server.url(bucket, "exp/run"))
    assert run.latest is not None
    assert not any(run.verify().values())


BEFORE = """
import sys
import holdfast as train
try:
    train.DataParallelTrainer(lambda: None, resume_from=sys.argv[2] or None,
        run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet")).fit()
except train.TrainingInterrupted as error:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("what", ["manifests", "files"])
def test_a_signal_ends_what_waits_for_a_silent_bucket_before_the_first_attempt(
    server: S3Server, bucket: str, proxy: Proxy, tmp_path: Path, what: str
) -> None:
    earlier = open_run(server.url(bucket, "exp/earlier"))
    for _ in range(3):
        report(earlier, tmp_path, {f"{number}": b"small" for number in range(40)})
    earlier.close()
    url = server.url(bucket, "exp", port=proxy.port)
    stalled = ".manifest.json" if what == "manifests" else "checkpoint_000003/1"
    proxy.fail(Fault("GET", stalled, times=-1, stalls=True))
    if what == "manifests":
        run = open_run(server.url(bucket, "exp/run"))
        for _ in range(3):
            report(run, tmp_path / "run", {"small": b"small"})
        run.close()
    with Driver(
        BEFORE, url, "" if what == "manifests" else server.url(bucket, "exp/earlier", port=proxy.port)
    ) as driver:
        driver.wait_until(lambda: proxy.count("GET", stalled), "it asks")
        driver.send_signal(signal.SIGTERM)
        out, _ = driver.communicate(timeout=SOON_S)
    assert out.split() == ["interrupted"]


class Strict:
    """Refuses what comes while so many others are on their way."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.running = self.refused = self.peak = 0
        self.lock = threading.Lock()


def test_requests_that_are_too_many_become_fewer_and_then_more(
    server: S3Server, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strict = Strict(6)
    with running_proxy(server.port) as proxy:
        serve = proxy._handle

        def handle(client: object, head: bytes, fault: Fault) -> None:
            with strict.lock:
                strict.running += 1
                strict.peak = max(strict.peak, strict.running)
                too_many = strict.running > strict.most
                strict.refused += too_many
            try:
                time.sleep(0.01)
                serve(client, head, Fault(answers=SLOW_DOWN) if too_many else fault)  # type: ignore[arg-type]
            finally:
                with strict.lock:
                    strict.running -= 1

        proxy._handle = handle  # type: ignore[method-assign, assignment]
        store = open_store(server.url(bucket, "run", port=proxy.port))
        source = tmp_path / "source"
        source.write_bytes(b"data")

        def store_some(first: int, count: int) -> None:
            with ThreadPoolExecutor(16) as pool:
                list(
                    pool.map(lambda n: put(store, f"c/{n}", tmp_path, None, source=source), range(first, first + count))
                )

        store_some(0, 150)
        # Without back-pressure nearly all of the first tries are refused, and most of the second ones.
        assert 0 < strict.refused < 100
        assert "requests come too fast" in caplog.text
        strict.most, strict.peak = 1000, 0
        store_some(1000, 300)
        assert strict.peak > 4
        store.confirm("c", {str(n): 4 for n in [*range(150), *range(1000, 1300)]})


def test_signs_of_life_do_not_wait_for_files(store: Store, proxy: Proxy, tmp_path: Path) -> None:
    store.write("key", b"data")
    go_on = threading.Event()
    for _ in range(5):
        proxy.fail(Fault("PUT", "/c/", answers=SLOW_DOWN))
    proxy.fail(Fault("PUT", "/c/", times=-1, waits_for=go_on))
    source = tmp_path / "source"
    source.write_bytes(b"data")
    with ThreadPoolExecutor(21) as pool:
        storing = [pool.submit(put, store, f"c/{number}", tmp_path, None, source=source) for number in range(20)]
        try:
            time.sleep(1.0)
            pool.submit(store.write, "heartbeat", b"alive").result(SOON_S)
        finally:
            go_on.set()
        for each in storing:
            each.result(60)


def test_an_environment_that_changes_counts_for_the_next_run(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = server.make_bucket()
    store = open_store(f"s3://{bucket}/run?max_retries=0")
    with pytest.raises(StorageError):
        store.write("key", b"data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    open_store(f"s3://{bucket}/run?max_retries=0").write("key", b"data")
    assert open_store(server.url(bucket, "run")).read("key") == b"data"


def test_a_checkpoint_that_does_not_exist_is_said_as_on_a_disk(server: S3Server, bucket: str) -> None:
    checkpoint = train.Checkpoint(server.url(bucket, "run/none"))
    for ask in (checkpoint.files, checkpoint.verify, checkpoint.get_metadata):
        with pytest.raises(train.StoreNotFoundError, match="There is no checkpoint at"):
            ask()
