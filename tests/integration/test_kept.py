"""A restart on the same machine fetches nothing of a remote checkpoint that is still here, and believes none of it unseen."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import cloudpickle
import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from holdfast.persistence import verify
from holdfast.persistence.restore import default_cache_dir
from holdfast.persistence.staging_places import StagingPlaces
from holdfast.stores import open_store
from support.s3_proxy import running_proxy
from support.s3_server import KEYS, running_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
SIZE_BYTES = 300_000
DAMAGED = b"!" * SIZE_BYTES


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def proxy(server, tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    # Copies of its own, so that none of another test is found.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    # The function travels by value: this module cannot be imported by a worker.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with running_proxy(server.port) as proxy:
        yield proxy
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def url(server, proxy):
    return server.url(server.make_bucket(), "exp", port=proxy.port)


def fetched(proxy):
    """The files of checkpoints whose bytes came from the store, in the order of their names."""
    paths = [line.split()[1].partition("?")[0] for line in proxy.requests if line.startswith("GET ")]
    return sorted(
        {path.rpartition("/")[2] for path in paths if "/checkpoint_0" in path} - {".manifest.json", ".metadata.json"}
    )


def content(rank, step=0):
    return bytes([rank, step]) * (SIZE_BYTES // 2)


def write(directory, step=0):
    rank = train.get_context().get_world_rank()
    Path(directory, "shards").mkdir(exist_ok=True)
    Path(directory, "shards", f"{rank}.bin").write_bytes(content(rank, step))


def die():
    train.collective.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def read_all(checkpoint, how):
    """Each rank's file as a worker of the next attempt finds it."""
    size = train.get_context().get_world_size()
    names = [f"shards/{rank}.bin" for rank in range(size)]
    if how == "open":
        files = [checkpoint.open(name) for name in names]
        return [file.read() for file in files]
    if how == "to_directory":
        directory = checkpoint.to_directory()
        return [Path(directory, name).read_bytes() for name in names]
    with checkpoint.as_directory(include=["shards/*"] if how == "include" else None) as directory:
        return [Path(directory, name).read_bytes() for name in names]


def report_in(config, how, step=0):
    """Reports a checkpoint in one of the ways that there are, and leaves none of its files behind."""
    if how in ("staging", "memory", "staging_async"):
        make = lambda: train.staging_directory(SIZE_BYTES if how == "memory" else None)  # noqa: E731
    else:
        make = tempfile.TemporaryDirectory
    mode = CheckpointUploadMode.ASYNC if how in ("async", "staging_async") else CheckpointUploadMode.SYNC
    with make() as directory:
        write(directory, step)
        pending = train.report({"step": step}, Checkpoint.from_directory(directory), checkpoint_upload_mode=mode)
    pending.result(60)


def loop(config):
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        report_in(config, config["how"])
        die()
    return read_all(checkpoint, config.get("read"))


def fit(function, url, *, workers=2, failures=1, config=None, **options):
    return DataParallelTrainer(
        function,
        train_loop_config=config or {},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name="run",
            storage_path=url,
            progress="quiet",
            failure_config=FailureConfig(max_failures=failures),
            **options,
        ),
    ).fit()


def open_files():
    """What this process has open that is no socket or pipe."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(link for link in links if link.startswith("/"))


def left_over():
    return sorted(str(path) for path in default_cache_dir().rglob("*"))


@pytest.mark.parametrize("how", ["async", "sync", "staging", "staging_async", "memory"])
def test_a_restart_fetches_nothing_that_the_node_keeps(url, proxy, how):
    fit(loop, url, config={"how": how})  # the zygote is there from now on
    before = open_files()
    result = fit(loop, url.replace("exp?", "other?"), config={"how": how})
    assert result.return_value == [content(0), content(1)]
    assert fetched(proxy) == []
    assert open_files() == before
    assert left_over() == []


@pytest.mark.parametrize("read", ["to_directory", "open", "include"])
def test_however_it_is_read(url, proxy, read):
    result = fit(loop, url, config={"how": "async", "read": read})
    assert result.return_value == [content(0), content(1)]
    assert fetched(proxy) == []


def from_own_directory(config):
    checkpoint = train.get_checkpoint()
    rank = train.get_context().get_world_rank()
    own = Path(config["base"], str(rank))
    if checkpoint is not None:
        return read_all(checkpoint, config.get("read"))
    own.mkdir()
    write(own)
    train.report({}, Checkpoint.from_directory(own))
    if config["then"] == "deleted":
        shutil.rmtree(own)
    elif rank == 1:
        file = own / "shards" / "1.bin"
        with file.open("r+b") as opened:
            opened.write(b"something else")
        if config["then"] == "cut":
            os.truncate(file, 10)
    die()
    return None


@pytest.mark.parametrize(("then", "expected"), [("deleted", []), ("written to", ["1.bin"]), ("cut", ["1.bin"])])
@pytest.mark.parametrize("read", [None, "open"])
def test_a_users_own_files_are_what_was_reported_or_are_fetched(url, proxy, tmp_path, then, expected, read):
    result = fit(from_own_directory, url, config={"base": str(tmp_path), "then": then, "read": read})
    assert result.return_value == [content(0), content(1)]
    assert fetched(proxy) == expected


@pytest.mark.parametrize(
    ("limit_bytes", "num_fetched"), [(0, 2), (SIZE_BYTES - 1, 2), (SIZE_BYTES + 1, 1), (2 * SIZE_BYTES, 0)]
)
def test_no_more_is_kept_than_the_limit_says(url, proxy, limit_bytes, num_fetched):
    result = fit(loop, url, config={"how": "async"}, restart_cache_bytes=limit_bytes)
    assert result.return_value == [content(0), content(1)]
    assert len(fetched(proxy)) == num_fetched


def newest_only(config):
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        for step in range(3):
            report_in(config, "async", step)
        die()
    return read_all(checkpoint, None)


def test_it_is_the_newest_that_is_kept(url, proxy):
    result = fit(newest_only, url)
    assert result.return_value == [content(0, 2), content(1, 2)]
    assert fetched(proxy) == []


def dies_before_its_first_report(config):
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        report_in(config, "async")
        return None
    found = read_all(checkpoint, config["read"])
    attempt = Path(config["base"], f"{train.get_context().get_world_rank()}")
    if not attempt.exists():
        attempt.touch()
        die()
    return found


@pytest.mark.parametrize("read", [None, "to_directory", "open", "include"])
def test_what_an_earlier_driver_left_is_fetched_once(url, proxy, tmp_path, read):
    config = {"base": str(tmp_path), "read": read}
    fit(dies_before_its_first_report, url, config=config)
    result = fit(dies_before_its_first_report, url, config=config)
    assert result.return_value == [content(0), content(1)]
    gets = [line for line in proxy.requests if line.startswith("GET ") and "/shards/" in line]
    # Of each file one, by the new driver: to verify it, for the workers of its first attempt, and for those of the second.
    assert len(gets) == 2
    assert left_over() == []


def test_where_nothing_may_be_kept_it_is_verified_all_the_same(url, proxy, tmp_path):
    config = {"base": str(tmp_path), "read": None}
    fit(dies_before_its_first_report, url, config=config)
    result = fit(dies_before_its_first_report, url, config=config, restart_cache_bytes=0)
    assert result.return_value == [content(0), content(1)]
    gets = [line for line in proxy.requests if line.startswith("GET ") and "/shards/" in line]
    # Verified by the driver, and then fetched by each attempt: once, or by each rank where they did not read at the same time.
    assert 6 <= len(gets) <= 10
    assert left_over() == []


def damaged_by_hand(config):
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        return read_all(checkpoint, None)
    for step in range(2):
        report_in(config, "async", step)
    return None


def test_a_damaged_checkpoint_of_an_earlier_driver_is_passed_over(url, proxy, caplog):
    fit(damaged_by_hand, url)
    open_store(url).child("run/checkpoint_000002").write("shards/1.bin", bytes(SIZE_BYTES))
    result = fit(damaged_by_hand, url)
    assert result.return_value == [content(0, 0), content(1, 0)]
    assert "its content changed" in caplog.text
    assert left_over() == []


def overwritten(config):
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        return read_all(checkpoint, None)
    for step in range(2):
        report_in(config, "async", step)
    if train.get_context().get_world_rank() == 0:
        store = open_store(config["url"]).child("run/checkpoint_000002")
        times = {}
        # The store's clock may go by whole seconds.
        while not times or times["shards/0.bin"] <= times[".manifest.json"]:
            store.write("shards/0.bin", bytes(SIZE_BYTES))
            times = {entry.key: entry.mtime_s for entry in store.list(recursive=True)}
    die()
    return None


def test_a_newest_checkpoint_that_somebody_overwrote_is_passed_over(url, proxy, caplog):
    result = fit(overwritten, url, config={"url": url})
    assert result.return_value == [content(0, 0), content(1, 0)]
    assert "its content changed" in caplog.text


def overwritten_unnoticed(config):
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        found = read_all(checkpoint, config["read"])
        if found[0] == DAMAGED:
            raise ValueError("these are no weights")
        return found
    for step in range(2):
        report_in(config, "async", step)
    train.collective.barrier()
    if train.get_context().get_world_rank() == 0:
        open_store(config["url"]).child("run/checkpoint_000002").write("shards/0.bin", DAMAGED)
    die()
    return None


@pytest.mark.parametrize("read", [None, "open"])
def test_what_the_stores_times_do_not_show_is_compared_once_an_attempt_has_failed_of_it(url, monkeypatch, caplog, read):
    # As where all was written within one second of the store's clock.
    monkeypatch.setattr(verify, "is_older_than_manifest", lambda store, prefix: True)
    config = {"url": url, "read": read}
    result = fit(overwritten_unnoticed, url, config=config, failures=2, restart_cache_bytes=0)
    assert result.return_value == [content(0, 0), content(1, 0)]
    assert "its content changed" in caplog.text


def raises_at_first(config):
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        report_in(config, "async")
        die()
    attempts = Path(config["base"], f"{train.get_context().get_world_rank()}")
    attempts.mkdir(exist_ok=True)
    (attempts / f"{len(os.listdir(attempts))}").touch()
    if len(os.listdir(attempts)) < 4:
        train.collective.barrier()
        raise ValueError("nothing to do with the checkpoint")
    return read_all(checkpoint, None)


def test_a_function_that_raises_again_and_again_has_the_checkpoint_fetched_once(url, proxy, tmp_path):
    result = fit(raises_at_first, url, config={"base": str(tmp_path)}, failures=4)
    assert result.return_value == [content(0), content(1)]
    gets = [line for line in proxy.requests if line.startswith("GET ") and "/shards/" in line]
    assert len(gets) == 2


def saves_state(config):
    import torch

    from holdfast.torch import load_state, save_state

    rank = train.get_context().get_world_rank()
    state = {f"tensor {rank}": torch.zeros(100_000)}
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        load_state(state, checkpoint)
        return float(state[f"tensor {rank}"].sum())
    for step in range(1, 4):
        state[f"tensor {rank}"].fill_(step)
        with tempfile.TemporaryDirectory() as directory:
            save_state(state, directory)
            pending = train.report(
                {}, Checkpoint.from_directory(directory), checkpoint_upload_mode=CheckpointUploadMode.ASYNC
            )
        pending.result(60)
    if config["refills"]:
        # The memory of the newest checkpoint, where there is no other: what the node keeps is not it any more.
        for _ in range(3):
            state[f"tensor {rank}"].fill_(100)
            with tempfile.TemporaryDirectory() as directory:
                save_state(state, directory)
    die()
    return None


@pytest.mark.parametrize("refills", [False, True])
def test_memory_that_a_state_was_saved_into_is_kept_until_it_is_used_again(url, proxy, refills):
    from holdfast.torch import TorchTrainer

    result = TorchTrainer(
        saves_state,
        train_loop_config={"refills": refills},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run", storage_path=url, progress="quiet", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()
    assert result.return_value == 300_000
    expected = [f"rank-{rank:05d}.safetensors" for rank in range(2)] if refills else []
    assert [name for name in fetched(proxy) if name != "values.json"] == expected


def validates(checkpoint):
    with checkpoint.as_directory() as directory:
        return {"size": sum(path.stat().st_size for path in Path(directory, "shards").iterdir())}


def is_validated(config):
    with tempfile.TemporaryDirectory() as directory:
        write(directory)
        train.report({}, Checkpoint.from_directory(directory), validation=True)


def test_a_validation_fetches_nothing_either(url, proxy):
    DataParallelTrainer(
        is_validated,
        validation_config=train.ValidationConfig(fn=validates),
        run_config=RunConfig(name="run", storage_path=url, progress="quiet"),
    ).fit()
    assert fetched(proxy) == []


def test_no_place_of_the_run_is_left(url, proxy, monkeypatch):
    places, take = [], StagingPlaces.take
    monkeypatch.setattr(StagingPlaces, "take", lambda taken: (take(taken), places.extend(taken.paths)))
    fit(loop, url, config={"how": "memory"})
    assert len(places) == 2
    assert not any(os.path.exists(place) for place in places)
