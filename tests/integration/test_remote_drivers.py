"""Requests of a driver that is dead arrive late, at names that the next driver may want: nothing of the two ever mixes."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import pytest

import holdfast as train
from holdfast import Checkpoint, DataParallelTrainer, RunConfig, ScalingConfig
from holdfast.stores import open_store
from support.drivers import Driver
from support.s3_proxy import Fault, Proxy, running_proxy
from support.s3_server import KEYS, S3Server, running_server
from support.waiting import LIMIT_S, wait_until

SMALL, LARGE = 100_000, 9 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    # The function travels by value: this module cannot be imported by a worker.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with running_proxy(server.port) as proxy:
        yield proxy


DRIVER = """
import sys, tempfile
from pathlib import Path
import holdfast as train
url, name, size_bytes = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
def loop(config):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "weights").write_bytes(b"1" * size_bytes)
        train.report({"driver": 1}, train.Checkpoint(directory), checkpoint_dir_name=name)
train.DataParallelTrainer(
    loop,
    scaling_config=train.ScalingConfig(num_workers=0),
    run_config=train.RunConfig(name="run", storage_path=url, progress="quiet"),
).fit()
"""


def kill_while_it_asks(url: str, name: str, size_bytes: int, is_asked: Callable[[], bool]) -> None:
    with Driver(DRIVER, url, name, size_bytes, env={**os.environ, **KEYS}) as driver:
        driver.wait_until(is_asked, "the first driver stores its file")


def report_weights(config: dict[str, object]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "weights").write_bytes(b"2" * int(str(config["size_bytes"])))
        train.report({"driver": 2}, Checkpoint(directory), checkpoint_dir_name=config["name"] or None)
    return config


def second_driver(url: str, name: str, size_bytes: int, failures: int = 0) -> None:
    DataParallelTrainer(
        report_weights,
        train_loop_config={"name": name, "size_bytes": size_bytes},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name="run", storage_path=url, progress="quiet", failure_config=train.FailureConfig(max_failures=failures)
        ),
    ).fit()


@pytest.mark.parametrize("name", ["", "chosen"])
def test_a_late_file_of_a_dead_driver_is_never_taken_for_anothers(server: S3Server, proxy: Proxy, name: str) -> None:
    bucket = server.make_bucket()
    url, behind = server.url(bucket, "exp", port=proxy.port), open_store(server.url(bucket, "exp/run"))
    late, later = threading.Event(), threading.Event()
    proxy.fail(Fault("PUT", "/weights", waits_for=late))
    kill_while_it_asks(url, name, SMALL, lambda: proxy.count("PUT", "/weights") == 1)
    key = f"{name or 'checkpoint_000001'}/weights"
    proxy.fail(Fault("PUT", "/weights", waits_for=later))

    def let_the_first_come_before_the_second() -> None:
        wait_until(lambda: proxy.count("PUT", "/weights") == 2, "the second driver stores its file")
        late.set()
        wait_until(lambda: behind.exists(key), "the late file arrives")
        later.set()

    beside = threading.Thread(target=let_the_first_come_before_the_second)
    beside.start()
    try:
        second_driver(url, name, SMALL, failures=1)
    finally:
        beside.join()
    (checkpoint,) = train.Run(server.url(bucket, "exp/run")).checkpoints
    assert checkpoint.metrics == {"driver": 2}
    assert checkpoint.checkpoint.verify() == []


@pytest.mark.parametrize("name", ["", "chosen"])
def test_a_late_end_of_a_dead_drivers_upload_makes_nothing(server: S3Server, proxy: Proxy, name: str) -> None:
    bucket = server.make_bucket()
    url = server.url(bucket, "exp", port=proxy.port)
    late = threading.Event()
    # The last step of an upload in parts, which makes the object, and which no condition can be given to.
    end = proxy.fail(Fault("POST", "/weights?uploadId", waits_for=late))
    kill_while_it_asks(url, name, LARGE, lambda: proxy.count("POST", "/weights?uploadId") == 1)
    assert server.unfinished_uploads(bucket) == 1
    second_driver(url, name, LARGE)
    assert server.unfinished_uploads(bucket) == 0
    late.set()
    assert end.passed_on.wait(LIMIT_S)
    (checkpoint,) = train.Run(server.url(bucket, "exp/run")).checkpoints
    assert checkpoint.metrics == {"driver": 2}
    assert checkpoint.checkpoint.verify() == []


def test_the_line_of_a_report_that_a_killed_driver_had_no_time_to_log_is_there_once(
    server: S3Server, proxy: Proxy
) -> None:
    bucket = server.make_bucket()
    url = server.url(bucket, "exp", port=proxy.port)
    late = threading.Event()
    # It comes after the commit.
    line = proxy.fail(Fault("PUT", "/metrics/", waits_for=late))
    kill_while_it_asks(url, "", SMALL, lambda: proxy.count("PUT", "/metrics/") == 1)
    second_driver(url, "", SMALL)

    def logged() -> list[tuple[int, int, object]]:
        reports = train.Run(server.url(bucket, "exp/run")).reports()
        return [(each["report"], each["attempt"], each["metrics"]) for each in reports]

    assert logged() == [(1, 1, {"driver": 1}), (2, 2, {"driver": 2})]
    late.set()
    assert line.passed_on.wait(LIMIT_S)
    assert logged() == [(1, 1, {"driver": 1}), (2, 2, {"driver": 2})]
