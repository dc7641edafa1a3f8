"""`staging_directory` of a run in a bucket: in memory where that is enough, else on disk, and nothing left of either."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import cloudpickle
import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from holdfast.persistence.private_place import user_place
from support.s3_server import KEYS, running_server

SMALL_BYTES = 100_000
MEMORY_BYTES = 16 << 20


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A small file system of memory of the test's own, in the place of /dev/shm."""
    path = tmp_path / "memory"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEMORY_BYTES}", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("HOLDFAST_MEMORY_DIR", str(path))
    # The function travels by value: this module cannot be imported by a worker.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def url(server, memory):
    return server.url(server.make_bucket(), "exp")


def fit(function, url, *, workers=1, failures=0, **config):
    return DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name="run", storage_path=url, progress="quiet", failure_config=FailureConfig(max_failures=failures)
        ),
    ).fit()


def where(directory):
    return "memory" if Path(directory).is_relative_to(os.environ["HOLDFAST_MEMORY_DIR"]) else "disk"


def left(memory):
    """Whatever of a run is left on disk or in memory."""
    places = [user_place("staging"), user_place("staging", memory)]
    return [entry for place in places if place.exists() for entry in place.iterdir()]


def save(size_bytes=SMALL_BYTES, *, hint=None, mode="SYNC"):
    """Reports so many bytes from a staging directory; gives where that was."""
    with train.staging_directory(hint) as directory:
        rank = train.get_context().get_world_rank()
        Path(directory, f"{rank}").write_bytes(os.urandom(size_bytes))
        pending = train.report(
            {}, Checkpoint.from_directory(directory), checkpoint_upload_mode=CheckpointUploadMode(mode)
        )
    pending.result(60)
    assert not os.path.exists(directory)
    return where(directory)


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_one_is_on_disk_and_what_is_known_to_fit_in_memory(url, memory, mode, workers):
    def loop(config):
        places = [save(mode=config["mode"]) for _ in range(2)]
        places.append(save(hint=MEMORY_BYTES, mode=config["mode"]))
        places.append(save(hint=SMALL_BYTES, mode=config["mode"]))
        return places

    result = fit(loop, url, workers=workers, mode=mode)
    assert result.return_value == ["disk", "memory", "disk", "memory"]
    assert result.checkpoint.verify() == []
    assert left(memory) == []


def test_the_workers_of_a_machine_share_the_memory(url):
    def loop(config):
        return save(hint=MEMORY_BYTES // 6)

    assert fit(loop, url).return_value == "memory"
    assert fit(loop, url.replace("exp", "other"), workers=2).return_value == "disk"


def test_growth_is_expected(url):
    def loop(config):
        save(MEMORY_BYTES // 4 - 200_000)
        return save()

    assert fit(loop, url).return_value == "disk"


def test_a_large_save_is_expected_again_after_small_ones(url):
    def loop(config):
        return [save(MEMORY_BYTES // 2), save(), save(), save(MEMORY_BYTES // 2), save()]

    assert fit(loop, url).return_value == ["disk"] * 5


def test_memory_without_a_limit_is_not_full(url, memory):
    subprocess.run(["mount", "-o", "remount,size=0", str(memory)], check=True)
    assert os.statvfs(memory).f_blocks == 0

    def loop(config):
        with train.staging_directory(SMALL_BYTES) as unreported:
            pass
        return [where(unreported), save(hint=SMALL_BYTES), save(hint=SMALL_BYTES)]

    assert fit(loop, url).return_value == ["memory"] * 3


def test_full_memory_fails_one_save_and_sends_the_next_to_disk(url, memory):
    def loop(config):
        number = None
        try:
            with train.staging_directory(SMALL_BYTES) as directory:
                assert where(directory) == "memory"
                Path(directory, "larger than was said").write_bytes(bytes(MEMORY_BYTES + 1))
        except OSError as error:
            number = error.errno
        assert number == errno.ENOSPC
        assert not os.path.exists(directory)
        return [save(hint=SMALL_BYTES) for _ in range(2)]

    result = fit(loop, url)
    assert result.return_value == ["disk", "disk"]
    assert result.checkpoint.verify() == []
    assert left(memory) == []


def test_full_memory_that_ends_an_attempt_is_remembered_by_the_next(url, memory):
    def loop(config):
        with train.staging_directory(SMALL_BYTES) as directory:
            try:
                Path(directory, "file").write_bytes(bytes(MEMORY_BYTES + 1))
            except OSError:
                raise RuntimeError("as a library says it") from None
            train.report({}, Checkpoint.from_directory(directory))
        return where(directory)

    assert fit(loop, url, failures=1).return_value == "disk"
    assert left(memory) == []


def test_memory_that_is_full_already_is_not_used(url, memory):
    (memory / "somebody's").write_bytes(bytes(MEMORY_BYTES - (1 << 20)))

    def loop(config):
        return save(hint=1 << 20)

    assert fit(loop, url).return_value == "disk"


def test_a_killed_worker_leaves_nothing_for_the_next_attempt(url, memory):
    def loop(config):
        found = [path for path in left(memory) if path.is_dir()]
        if not Path(config["marker"]).exists():
            Path(config["marker"]).touch()
            with train.staging_directory(SMALL_BYTES) as directory:
                Path(directory, "half").write_text("x")
                assert where(directory) == "memory"
                os.kill(os.getpid(), signal.SIGKILL)
        return found

    assert fit(loop, url, failures=1, marker=str(memory.parent / "marker")).return_value == []
    assert left(memory) == []


def test_a_killed_driver_leaves_nothing_after_the_next_start_of_another_run(url, memory):
    script = """
        import os, sys
        from pathlib import Path
        import holdfast as train
        def loop(config):
            with train.staging_directory() as on_disk, train.staging_directory(1000) as in_memory:
                for directory in (on_disk, in_memory):
                    Path(directory, "half").write_text("x")
                os.kill(config["driver"], 9)
                os.kill(os.getpid(), 9)
        train.DataParallelTrainer(
            loop,
            train_loop_config={"driver": os.getpid()},
            run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet"),
        ).fit()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), url], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len([path for path in left(memory) if path.is_dir()]) == 2
    fit(lambda config: None, memory.parent / "runs")
    assert left(memory) == []


def test_a_size_that_is_none_is_refused(url):
    def loop(config):
        for wrong in (-1, 1.5, True, "1 GiB"):
            with pytest.raises(train.ConfigurationError, match="number of bytes"), train.staging_directory(wrong):
                pass

    fit(loop, url)
