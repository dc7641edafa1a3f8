"""Jobs that lose workers, drivers and files, and come back where they were."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointConfig, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig
from support.drivers import Driver
from support.waiting import LIMIT_S, wait_until


def run(function, tmp_path, workers=2, config=None, max_failures=0, **options):
    return DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name="run",
            storage_path=tmp_path,
            failure_config=FailureConfig(max_failures=max_failures),
            **{"progress": "quiet", **options},
        ),
    ).fit()


def die_by(how):
    if how == "exception":
        raise ValueError("on purpose")
    if how == "exit":
        os._exit(0)
    if how == "sys.exit":
        sys.exit(3)
    if how == "segv":
        ctypes.string_at(0)
    if how == "out of memory":
        raise MemoryError
    os.kill(os.getpid(), getattr(signal, how))


def counting_loop(config):
    """Counts to `steps` through checkpoints; one rank dies at step `at` of the first attempt."""
    import json

    rank = train.get_context().get_world_rank()
    start, attempts = 0, 1
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as path:
            state = json.loads(Path(path, "state.json").read_text())
        start, attempts = state["step"] + 1, state["attempts"] + 1
    for step in range(start, config["steps"]):
        if rank == config["rank"] and attempts == 1 and step == config["at"]:
            config["die"](config["how"])
        with tempfile.TemporaryDirectory() as directory:
            if rank == 0:
                Path(directory, "state.json").write_text(json.dumps({"step": step, "attempts": attempts}))
            train.report({"step": step, "start": start}, Checkpoint.from_directory(directory))


def counting(how, steps=5, at=3, rank=1):
    # `die` and the loop travel by value: this module cannot be imported by a worker.
    return {"how": how, "steps": steps, "at": at, "rank": rank, "die": die_by}


@pytest.fixture(autouse=True)
def _by_value():
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.parametrize(
    "how", ["exception", "exit", "sys.exit", "segv", "out of memory", "SIGKILL", "SIGTERM", "SIGABRT"]
)
def test_a_job_resumes_from_its_latest_checkpoint_whatever_kills_a_worker(tmp_path, how):
    result = run(counting_loop, tmp_path, config=counting(how), max_failures=1)
    assert result.metrics == {"step": 4, "start": 3}
    reports = train.Run(tmp_path / "run").reports()
    assert [line["metrics"]["step"] for line in reports] == [0, 1, 2, 3, 4]
    assert [line["attempt"] for line in reports] == [1, 1, 1, 2, 2]
    assert [line["report"] for line in reports] == sorted({line["report"] for line in reports})
    assert not [p for p in (tmp_path / "run").iterdir() if "partial" in p.name]


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("exception", ValueError, "on purpose"),
        ("SIGKILL", train.WorkerDiedError, "rank 1 was killed by SIGKILL"),
        ("segv", train.WorkerDiedError, "SIGSEGV"),
        ("exit", train.WorkerDiedError, "exited with code 0 before"),
    ],
)
def test_when_the_budget_is_used_up_the_error_tells_the_story(tmp_path, how, error, text):
    with pytest.raises(train.WorkerGroupError) as caught:
        run(counting_loop, tmp_path, config=counting(how))
    failed = caught.value
    assert isinstance(failed, train.TrainingFailedError)
    assert isinstance(failed.worker_failures[1], error)
    assert text in str(failed.worker_failures[1])
    assert text in str(failed)
    if how == "exception":
        assert "die_by" in "".join(failed.worker_failures[1].__notes__)  # the worker's own traceback
    assert failed.result.metrics["step"] == 2
    assert failed.result.error is failed
    assert failed.result.checkpoint is not None


@pytest.fixture
def small_memory():
    """A control group whose processes may use 200 MiB."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent, f"holdfast-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text(str(200 << 20))
        except OSError:
            continue
        yield group / "cgroup.procs"
        group.rmdir()
        return
    pytest.skip("no control group can be made here")


def test_the_kernels_out_of_memory_killer_is_named_and_survived(tmp_path, small_memory):
    def loop(config):
        if train.get_checkpoint() is None:
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "state").write_text("x")
                train.report({}, Checkpoint(directory))
            config["procs"].write_text(str(os.getpid()))
            kept = [bytearray(b"x") * (10 << 20) for _ in range(100)]
            raise AssertionError(f"{len(kept)} blocks were to be had")
        return "resumed"

    config = {"procs": small_memory}
    with pytest.raises(train.WorkerGroupError, match="out-of-memory killer"):
        run(loop, tmp_path, config=config, workers=1)
    assert run(loop, tmp_path, config=config, workers=1).return_value == "resumed"


def test_many_ranks_that_fail_together_count_once(tmp_path):
    def loop():
        if train.get_checkpoint() is None:
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, str(train.get_context().get_world_rank())).write_text("x")
                train.report({}, Checkpoint.from_directory(directory))
            raise RuntimeError("all of us")

    assert run(loop, tmp_path, workers=4, max_failures=1).error is None


def test_an_exception_that_cannot_be_unpickled_still_tells_its_text(tmp_path):
    def loop():
        class StubbornError(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a} and {b}")

        raise StubbornError("one", "two")

    with pytest.raises(train.WorkerGroupError, match="one and two"):
        run(loop, tmp_path, workers=1)


def test_fit_again_resumes_the_run_and_its_history_goes_on(tmp_path):
    with pytest.raises(train.WorkerGroupError):
        run(counting_loop, tmp_path, config=counting("SIGKILL"))
    result = run(counting_loop, tmp_path, config=counting("exception"))
    assert result.metrics == {"step": 4, "start": 3}
    frame = result.metrics_dataframe
    assert list(frame["step"]) == [0, 1, 2, 3, 4]
    assert list(frame["attempt"]) == [1, 1, 1, 2, 2]
    assert frame["time"].is_monotonic_increasing


DRIVER = """
import os, sys, tempfile, json
from pathlib import Path
import holdfast as train
def loop():
    start = 0
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as path:
            start = json.loads(Path(path, "step").read_text()) + 1
    for step in range(start, 10**9 if start == 0 else start + 3):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "step").write_text(json.dumps(step))
            train.report({"step": step}, train.Checkpoint.from_directory(directory) if train.get_context().get_world_rank() == 0 else None)
        print("step", step, flush=True)
train.DataParallelTrainer(loop, scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet",
        checkpoint_config=train.CheckpointConfig(num_to_keep=3))).fit()
"""


def test_a_driver_killed_in_mid_run_loses_nothing_that_was_reported(tmp_path):
    """After `report` has returned the checkpoint survives the death of every process."""
    script = tmp_path / "script.py"
    script.write_text(DRIVER)
    progress = tmp_path / "out"
    # The step that a worker has seen `report` return for; its own file, since the driver's output dies with it.
    text = script.read_text().replace(
        'print("step", step, flush=True)',
        f"train.get_context().get_world_rank() or tell({str(progress)!r}, step)",
    )
    # In one step: the worker is killed, too.
    told = (
        'def tell(path, step):\n    Path(path + "-new").write_text(str(step))\n    Path(path + "-new").replace(path)\n'
    )
    script.write_text(text.replace("def loop(", f"{told}\ndef loop(", 1))
    for delay in (0.0, 0.013, 0.04):
        with Driver(script, tmp_path) as driver:
            driver.await_file(progress)
            threading.Event().wait(delay)
            driver.kill()
            driver.communicate(timeout=LIMIT_S)  # the workers end with it; their last write is done
        returned = int(progress.read_text())
        found = train.Run(tmp_path / "run")
        latest = found.latest.metrics["step"]
        assert latest >= returned
        assert all(problems == [] for problems in found.verify().values())
        with found.latest.checkpoint.as_directory() as path:
            assert int(Path(path, "step").read_text()) == latest
        done = subprocess.run([sys.executable, script, tmp_path], timeout=60, check=True)
        assert done.returncode == 0
        again = train.Run(tmp_path / "run")
        assert again.latest.metrics["step"] == latest + 3
        progress.unlink()
        import shutil

        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncate", "remove", "alter", "manifest"])
def test_a_damaged_newest_checkpoint_is_skipped_and_the_user_is_told(tmp_path, damage, caplog):
    run(counting_loop, tmp_path, config=counting("exception", steps=3, at=99))
    newest = Path(train.Run(tmp_path / "run").latest.checkpoint.path)
    file = newest / (".manifest.json" if damage == "manifest" else "state.json")
    if damage == "remove":
        file.unlink()
    elif damage == "alter":
        file.write_bytes(bytes(reversed(file.read_bytes())))
    else:
        os.truncate(file, file.stat().st_size - 2)
    result = run(counting_loop, tmp_path, config=counting("exception", steps=5, at=99))
    assert result.metrics == {"step": 4, "start": 2}
    assert newest.name in caplog.text
    assert file.name in caplog.text


def test_damage_while_the_driver_lives_is_seen_at_the_restart(tmp_path):
    def loop():
        import json

        checkpoint = train.get_checkpoint()
        if checkpoint:
            return json.loads(Path(checkpoint.path, "state").read_text())
        for step in range(3):
            directory = tempfile.mkdtemp()
            Path(directory, "state").write_text(json.dumps(step))
            train.report({"step": step}, Checkpoint(directory), delete_local_checkpoint_after_upload=True)
        Path(train.get_checkpoint().path, "state").write_text("9")
        raise RuntimeError("now resume")

    assert run(loop, tmp_path, workers=1, max_failures=1).return_value == 1


def test_a_shard_of_a_dead_attempt_never_mixes_with_the_next(tmp_path):
    def loop():
        rank = train.get_context().get_world_rank()
        size = train.get_context().get_world_size()
        directory = tempfile.mkdtemp()
        Path(directory, f"shard-{rank}-of-{size}").write_text("x" * 1000)
        if rank == 1 and size == 3:
            run_path = Path(train.get_context().get_storage().experiment_fs_path)
            wait_until(
                lambda: any("partial" in p.name for p in run_path.iterdir()), "the others' shards are on their way"
            )
            os.kill(os.getpid(), signal.SIGKILL)
        train.report({}, Checkpoint(directory), delete_local_checkpoint_after_upload=True)

    with pytest.raises(train.WorkerGroupError):
        run(loop, tmp_path, workers=3)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".holdfast"]
    result = run(loop, tmp_path, workers=2)
    assert {file.path for file in result.checkpoint.files()} == {"shard-0-of-2", "shard-1-of-2"}


def test_a_complete_report_is_committed_although_a_rank_dies_meanwhile(tmp_path):
    def loop():
        if train.get_checkpoint() is not None:
            return "resumed"
        rank = train.get_context().get_world_rank()
        directory = tempfile.mkdtemp()
        with open(os.path.join(directory, f"big-{rank}"), "wb") as file:
            file.write(os.urandom(1 << 20) * 100)
        if rank == 1:
            run_path = Path(train.get_context().get_storage().experiment_fs_path)

            def die_once_both_are_being_stored():
                # Who looks too late finds the checkpoint.
                while len(list(run_path.glob(".*.partial-*/big-*"))) < 2 and not list(run_path.glob("checkpoint_*")):
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)

            threading.Thread(target=die_once_both_are_being_stored, daemon=True).start()
        train.report({}, Checkpoint(directory), delete_local_checkpoint_after_upload=True)
        while True:
            time.sleep(0.01)

    result = run(loop, tmp_path, max_failures=1)
    assert result.return_value == "resumed"
    assert result.checkpoint.verify() == []


def test_best_two_are_kept_beside_the_latest(tmp_path):
    def loop():
        for score in (3.0, float("nan"), 1.0, None, 2.0, 5.0):
            directory = tempfile.mkdtemp()
            Path(directory, "score").write_text(str(score))
            metrics = {} if score is None else {"loss": score}
            train.report(metrics, Checkpoint(directory), delete_local_checkpoint_after_upload=True)

    config = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="min")
    result = run(loop, tmp_path, workers=1, checkpoint_config=config)
    assert [metrics.get("loss") for _, metrics in result.best_checkpoints][-2:] == [2.0, 1.0]
    kept = sorted(p.name for p in (tmp_path / "run").iterdir() if p.name.startswith("checkpoint"))
    assert len(kept) == 3
    assert result.get_best_checkpoint("loss", "min").path.endswith("checkpoint_000003")


def test_two_drivers_never_write_one_run(tmp_path):
    def loop():
        time.sleep(0.01)
        with pytest.raises(train.RunInUseError, match="process"):
            subprocess_fit(tmp_path)

    def subprocess_fit(path):
        other = (
            "import sys, holdfast as t\n"
            "try:\n    t.DataParallelTrainer(lambda: None, run_config=t.RunConfig(name='run', storage_path=sys.argv[1])).fit()\n"
            "except t.RunInUseError as e:\n    print(e)\n    sys.exit(7)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", other, path], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 7, done.stderr
        raise train.RunInUseError(done.stdout)

    run(loop, tmp_path, workers=1)


def test_a_killed_zygote_is_one_failure_and_the_next_attempt_has_a_new_one(tmp_path):
    def loop():
        if train.get_checkpoint() is not None:
            return "resumed"
        directory = tempfile.mkdtemp()
        Path(directory, str(train.get_context().get_world_rank())).write_text("x")
        train.report({}, Checkpoint(directory), delete_local_checkpoint_after_upload=True)
        if train.get_context().get_world_rank() == 0:
            os.kill(os.getppid(), signal.SIGKILL)
        while True:
            time.sleep(0.01)

    assert run(loop, tmp_path, max_failures=1).return_value == "resumed"


def test_an_idle_zygote_that_was_killed_is_replaced(tmp_path):
    import psutil

    run(lambda: None, tmp_path)
    zygotes = [
        each for each in psutil.Process().children() if "holdfast.engines.local.zygote" in " ".join(each.cmdline())
    ]
    assert zygotes
    for process in zygotes:
        process.kill()
        process.wait()
    assert run(lambda: 5, tmp_path).return_value == 5


def test_what_was_reported_asynchronously_is_there_although_the_function_raises_next(tmp_path):
    def loop():
        directory = tempfile.mkdtemp()
        Path(directory, "model").write_bytes(b"x" * (1 << 24))
        train.report({}, Checkpoint(directory), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
        raise RuntimeError("right after")

    with pytest.raises(train.WorkerGroupError) as caught:
        run(loop, tmp_path, workers=1)
    assert caught.value.result.checkpoint.verify() == []


@pytest.mark.parametrize("max_failures", [-1, 5])
def test_a_mistake_that_two_attempts_make_at_once_is_not_repeated_again(tmp_path, max_failures):
    def loop():
        if train.get_checkpoint() is None:
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "file").touch()
                train.report({}, Checkpoint(directory))
        train.report({"ids": {1}})

    with pytest.raises(train.WorkerGroupError) as caught:
        run(loop, tmp_path, workers=0, max_failures=max_failures)
    # The first attempt had got somewhere, and the two after it got no further.
    assert (
        f"failed after 3 attempts (FailureConfig.max_failures={max_failures}; not repeated again, as two attempts made the same mistake at "
        "once): rank 0: MetricsError"
    ) in str(caught.value)
    assert isinstance(caught.value.worker_failures[0], train.MetricsError)


def test_a_mistake_that_has_another_text_each_time_is_repeated(tmp_path):
    tries = []

    def loop():
        tries.append(1)
        if len(tries) < 4:
            raise train.ConfigurationError(f"the disk has {len(tries)} bytes")

    run(loop, tmp_path, workers=0, max_failures=3)
    assert len(tries) == 4
