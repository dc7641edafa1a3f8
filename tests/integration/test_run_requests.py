"""What it costs to look at a run in a bucket, in requests: many checkpoints must not make it slow, nor dear.

The counts of 1,000 checkpoints are those that `docs/design.md` states.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import holdfast as train
from holdfast.metrics import encode_metrics
from holdfast.persistence import heartbeat, layout, metrics_log
from holdfast.persistence.manifest import encode_manifest
from holdfast.records import EpochRecord, Manifest, RunRecord, StoredFile
from holdfast.stores import open_store
from support.s3_proxy import Proxy, running_proxy
from support.s3_server import KEYS, S3Server, running_server

NUM = 1000
SEGMENTS = 40
RAY_RUN = Path(__file__).parents[1] / "compat" / "ray" / "run"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture(scope="module")
def long_run(server: S3Server) -> Iterator[str]:
    """The bucket of a run of 1,000 checkpoints of one driver, written as a driver writes it, but all at once."""
    bucket = server.make_bucket()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        store = open_store(server.url(bucket, "run"))
        objects = {
            layout.RUN_RECORD: msgspec.json.encode(RunRecord(id="r", name="run")),
            layout.epoch_key(1): msgspec.json.encode(EpochRecord(epoch=1, holder="a driver of long ago")),
            layout.HEARTBEAT: b'{"epoch":1,"nonce":"","released":true}',
        }
        lines = []
        for index in range(1, NUM + 1):
            name, metrics = layout.checkpoint_name(index), encode_metrics({"loss": abs(index - 700) / NUM})
            manifest = Manifest(
                id=f"id-{index}", name=name, report_index=index, epoch=1, attempt=1, world_size=1,
                metrics=msgspec.Raw(metrics), files=(StoredFile(path="file", size_bytes=1),),
            )  # fmt: skip
            objects[f"{name}/file"] = b"x"
            objects[layout.manifest_key(name)] = encode_manifest(manifest)
            lines.append(metrics_log.encode_line(index, 1, float(index), name, metrics, None))
        step = NUM // SEGMENTS
        for segment in range(SEGMENTS):
            objects[layout.segment_key(1, 1, segment + 1)] = b"".join(lines[segment * step : (segment + 1) * step])
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda item: store.write(*item), objects.items()):
                pass
        yield bucket


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    with running_proxy(server.port) as proxy:
        yield proxy


def test_looking_at_a_run_of_a_thousand_checkpoints(server: S3Server, proxy: Proxy, long_run: str) -> None:
    url = server.url(long_run, "run", port=proxy.port)

    def requests(call: Callable[[], object]) -> int:
        proxy.requests.clear()
        call()
        return len(proxy.requests)

    run = train.Run(url)
    # A page of a listing has 1,000 entries, so the run's directory is two.
    assert requests(lambda: train.Run(url)) <= 2
    assert requests(lambda: run.name) == 1
    assert requests(lambda: run.latest) <= 6
    assert run.latest.checkpoint.path.endswith(layout.checkpoint_name(NUM))
    assert requests(run.reports) <= SEGMENTS + 3
    assert requests(lambda: run.checkpoints) <= NUM + 5
    assert requests(lambda: run.best("loss", "min")) <= NUM + 6
    assert run.best("loss", "min").checkpoint.path.endswith(layout.checkpoint_name(700))
    assert requests(lambda: train.Result.from_path(url)) <= NUM + 12
    assert requests(lambda: run.driver) <= 4


def test_a_second_driver_reads_each_manifest_once(
    server: S3Server, proxy: Proxy, long_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "RENEW_S", 3600.0)  # how often the driver says that it lives is a matter of time
    storage = server.url(long_run, "", port=proxy.port)

    def function() -> str:
        return train.get_checkpoint().path

    job = train.DataParallelTrainer(
        function,
        scaling_config=train.ScalingConfig(num_workers=0),
        run_config=train.RunConfig(name="run", storage_path=storage, progress="quiet"),
    )
    assert job.fit().return_value.endswith(layout.checkpoint_name(NUM))
    manifests = [line for line in proxy.requests if line.startswith("GET ") and layout.MANIFEST in line]
    assert NUM <= len(manifests) <= NUM + 5  # that of the newest is read again, to be compared and restored
    assert len(proxy.requests) - len(manifests) <= 50


def test_manifests_are_read_several_at_once(server: S3Server, proxy: Proxy, long_run: str) -> None:
    run = train.Run(server.url(long_run, "run", port=proxy.port))
    busiest = _watched(proxy)
    assert len(run.checkpoints) >= NUM
    # Of 16 at once, some count for longer: an answer is there before the proxy's thread has left.
    assert 4 <= busiest() <= 64
    busiest = _watched(proxy)
    assert len(run.reports()) >= NUM
    assert 4 <= busiest() <= 64


def _watched(proxy: Proxy) -> Callable[[], int]:
    """From now on; gives how many requests were there at the same time at most."""
    at_once = [0, 0]
    handle = Proxy._handle

    def counted(client, head, fault) -> None:
        with proxy._lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        try:
            handle(proxy, client, head, fault)
        finally:
            with proxy._lock:
                at_once[0] -= 1

    proxy._handle = counted  # type: ignore[method-assign]
    return lambda: at_once[1]


def test_a_run_of_ray_trains_in_a_bucket_costs_two_requests_a_look(server: S3Server, proxy: Proxy) -> None:
    bucket = server.make_bucket()
    upload(RAY_RUN, server.url(bucket, "ray"))
    # pyarrow, by which Ray Train writes, marks each directory by an object.
    for path in ["", *(each.name + "/" for each in RAY_RUN.iterdir() if each.is_dir())]:
        server.request("PUT", f"/{bucket}/ray/{path}")
    url = server.url(bucket, "ray", port=proxy.port)
    run = train.Run(url)
    assert len(proxy.requests) <= 3
    proxy.requests.clear()
    assert [each.metrics["step"] for each in run.checkpoints] == [1, 3, 4]
    assert len(proxy.requests) == 2
    assert train.Result.from_path(url).metrics["step"] == 4
    assert not [line for line in proxy.requests if not line.startswith(("GET ", "HEAD "))]


def upload(directory: Path, url: str) -> None:
    """As any tool does it."""
    store = open_store(url)
    for path in directory.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(directory).as_posix(), path.read_bytes())


def test_workers_share_what_their_driver_fetched_to_begin_with(server: S3Server, proxy: Proxy, tmp_path: Path) -> None:
    bucket = server.make_bucket()
    upload(RAY_RUN, server.url(bucket, "ray"))
    # pyarrow, by which Ray Train writes, marks each directory by an object.
    for path in ["", *(each.name + "/" for each in RAY_RUN.iterdir() if each.is_dir())]:
        server.request("PUT", f"/{bucket}/ray/{path}")

    def function() -> str:
        checkpoint = train.get_checkpoint()
        with checkpoint.as_directory() as directory:
            return Path(directory, "rank-0.txt").read_text()

    def fit(source: str, name: str) -> train.Result:
        return train.DataParallelTrainer(
            function,
            scaling_config=train.ScalingConfig(num_workers=2),
            run_config=train.RunConfig(name=name, storage_path=tmp_path / "runs", progress="quiet"),
            resume_from=source,
        ).fit()

    assert fit(server.url(bucket, "ray", port=proxy.port), "from-ray").return_value == "step 4 of rank 0\n"
    assert proxy.count("GET", "/rank-0.txt") == 1
    # From a run of ours it is compared on the way, and named where it is not what was reported.
    train.DataParallelTrainer(
        _saves,
        run_config=train.RunConfig(name="own", storage_path=server.url(bucket, ""), progress="quiet"),
    ).fit()
    source = server.url(bucket, "own", port=proxy.port)
    proxy.requests.clear()
    assert fit(source, "from-own").return_value == "saved"
    assert proxy.count("GET", "/rank-0.txt") == 1
    open_store(server.url(bucket, "own/checkpoint_000001")).write("rank-0.txt", b"SAVED")
    with pytest.raises(train.DamagedCheckpointError, match=r"rank-0\.txt"):
        fit(source, "from-damaged")


def _saves() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "rank-0.txt").write_text("saved")
        train.report({}, checkpoint=train.Checkpoint.from_directory(directory))
