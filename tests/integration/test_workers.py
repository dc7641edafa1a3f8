"""Workers of the local engine: what they find, what they say, how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import holdfast as train
from holdfast import DataParallelTrainer, RunConfig, ScalingConfig
from support.drivers import Driver
from support.waiting import LIMIT_S, await_end

QUIET = {"progress": "quiet"}


def run(function, tmp_path, workers=2, config=None, **options):
    return DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name=options.pop("name", "run"), storage_path=tmp_path, **{**QUIET, **options}),
    ).fit()


def test_each_worker_knows_its_place(tmp_path):
    def loop():
        context = train.get_context()
        assert context.get_world_size() == context.get_local_world_size() == 3
        assert context.get_node_rank() == 0
        assert context.get_experiment_name() == "run"
        assert context.get_storage().build_checkpoint_path_from_name("x").endswith("/run/x")
        rank = context.get_world_rank()
        assert rank == context.get_local_rank() == int(os.environ["RANK"]) == int(os.environ["LOCAL_RANK"])
        assert os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"] == "3"
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
        assert int(os.environ["MASTER_PORT"]) > 0
        train.report({"rank": rank})

    result = run(loop, tmp_path, workers=3)
    assert result.metrics == {"rank": 0}
    assert result.error is None


def test_the_value_that_rank_zero_returns_is_the_results(tmp_path):
    assert run(lambda: {"rank": train.get_context().get_world_rank()}, tmp_path).return_value == {"rank": 0}


def test_the_function_may_take_a_config_or_nothing(tmp_path):
    assert run(lambda config: config["a"], tmp_path, config={"a": 5}).return_value == 5
    assert run(lambda: 6, tmp_path, config={"a": 5}, name="second").return_value == 6


def test_collectives_meet_and_carry_rank_zeros_data(tmp_path):
    def loop():
        rank = train.get_context().get_world_rank()
        train.collective.barrier()
        got = train.collective.broadcast_from_rank_zero({"from": rank, "big": b"x" * 2_000_000})
        assert got["from"] == 0
        assert len(got["big"]) == 2_000_000
        assert train.get_preemption_info() is None
        return got["from"]

    assert run(loop, tmp_path, workers=3).return_value == 0


def test_random_streams_differ_by_worker_and_by_attempt(tmp_path):
    def loop():
        import random

        import numpy

        train.report({"python": random.random(), "numpy": float(numpy.random.random())})

    for name in ("one", "two"):
        run(loop, tmp_path, name=name)
    lines = [line for name in ("one", "two") for line in train.Run(tmp_path / name).reports()]
    frame = train.Run(tmp_path / "one").metrics(ranks="all")
    for column in ("python", "numpy"):
        assert len(set(frame[column])) == 2
        assert lines[0]["metrics"][column] != lines[1]["metrics"][column]


def test_output_is_marked_by_rank_and_kept_in_files(tmp_path, capfd):
    def loop():
        rank = train.get_context().get_world_rank()
        print(f"out of {rank}")
        os.write(2, f"err of {rank}\n".encode())
        print("no newline at the end", end="")

    run(loop, tmp_path, progress="plain")
    shown = capfd.readouterr()
    for rank in range(2):
        assert any(f"out of {rank}" in line and f"{rank}" in line.split("out of")[0] for line in shown.out.splitlines())
        assert any(f"err of {rank}" in line for line in shown.err.splitlines())
        log = (tmp_path / "run/.holdfast/logs/attempt_000001" / f"rank_{rank:05d}.log").read_text()
        assert f"out of {rank}\n" in log
        assert f"err of {rank}\n" in log
        assert "no newline at the end" in log


def test_num_workers_zero_runs_here_and_persists_as_usual(tmp_path):
    here = os.getpid()
    seen = []

    def loop():
        seen.append(os.getpid())
        directory = tmp_path / "mine"
        directory.mkdir()
        (directory / "model.txt").write_text("weights")
        train.report({"a": 1}, train.Checkpoint.from_directory(directory))
        assert train.get_checkpoint() is not None
        return "value"

    result = run(loop, tmp_path, workers=0)
    assert seen == [here]
    assert result.return_value == "value"
    with result.checkpoint.as_directory() as path:
        assert (Path(path) / "model.txt").read_text() == "weights"
    with pytest.raises(train.OutsideWorkerError):
        train.report({})


def test_num_workers_zero_is_tried_again_after_a_failure(tmp_path):
    tries = []

    def loop():
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("first")
        return len(tries)

    result = run(loop, tmp_path, workers=0, failure_config=train.FailureConfig(max_failures=1))
    assert result.return_value == 2


def test_what_a_worker_started_ends_with_it(tmp_path):
    def loop():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        train.report({"child": child.pid})

    child = run(loop, tmp_path, workers=1).metrics["child"]
    await_end(child)


SCRIPT = """
import os, sys, time
import holdfast as train
def loop():
    open(os.path.join(sys.argv[1], f"pid-{train.get_context().get_world_rank()}"), "w").write(str(os.getpid()))
    print("up", flush=True)
    time.sleep(600)
open(os.path.join(sys.argv[1], "pid-driver"), "w").write(str(os.getpid()))
train.DataParallelTrainer(loop, scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(name="run", storage_path=sys.argv[1])).fit()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP])
def test_the_whole_group_ends_with_the_driver_however_it_dies(tmp_path, signum):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with Driver(script, tmp_path) as driver:
        driver.await_file(*[tmp_path / f"pid-{n}" for n in ("0", "1", "driver")])
        tree = psutil.Process(driver.pid).children(recursive=True)
        assert len(tree) == 3  # the zygote and two workers, nothing else
        driver.send_signal(signum)
        driver.wait(LIMIT_S)
        for process in tree:
            await_end(process.pid)


IMPORTING = """
import dataclasses, os, sys
import holdfast as train
@dataclasses.dataclass(frozen=True)
class Slow(train.BackendConfig):
    def preload(self):
        return ("never_imported",)
train.DataParallelTrainer(lambda: print("started"), backend_config=Slow(),
    run_config=train.RunConfig(name="run", storage_path=sys.argv[1])).fit()
"""


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGINT"])
def test_an_import_that_never_ends_holds_nobody(tmp_path, ending):
    (tmp_path / "script.py").write_text(IMPORTING)
    (tmp_path / "never_imported.py").write_text(f"open({str(tmp_path / 'up')!r}, 'w')\nimport time\ntime.sleep(600)\n")
    with Driver(tmp_path / "script.py", tmp_path) as driver:
        driver.await_file(tmp_path / "up")
        tree = psutil.Process(driver.pid).children(recursive=True)
        assert tree
        driver.send_signal(signal.Signals[ending])
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert "started" not in out
    for process in tree:
        await_end(process.pid)


LATE = """
import dataclasses, signal, sys, time
import holdfast as train
from holdfast.engines.local.group import LocalGroup
base, goes_on_after = sys.argv[1:]
real = getattr(LocalGroup, goes_on_after)
def and_goes_on(self, ranks):
    real(self, ranks)
    self._signal(ranks, signal.SIGCONT)
setattr(LocalGroup, goes_on_after, and_goes_on)
@dataclasses.dataclass(frozen=True)
class Stopping(train.BackendConfig):
    def preload(self):
        return ("stopping",)
def loop():
    if goes_on_after == "interrupt":
        time.sleep(600)
    train.report({})
try:
    train.DataParallelTrainer(loop, backend_config=Stopping(), scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(
            name="run", storage_path=base, progress="quiet", late_rank_warning_s=0.1, stop_grace_s=600)).fit()
    print("whole")
except train.TrainingInterrupted:
    print("interrupted")
"""
# The second worker of all is held up in its first moment.
STOPPING = """
import os, signal
from holdfast.engines.local import child, zygote
fork, become_worker, forks = zygote.Zygote._fork, child.become_worker, []
def counted(self, descriptors):
    forks.append(None)
    return fork(self, descriptors)
def stopped(*arguments):
    if len(forks) == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    become_worker(*arguments)
zygote.Zygote._fork, child.become_worker = counted, stopped
"""


@contextlib.contextmanager
def late_worker(tmp_path, goes_on_after):
    """A driver one of whose workers goes on when this method has sent it a signal."""
    (tmp_path / "script.py").write_text(LATE)
    (tmp_path / "stopping.py").write_text(STOPPING)
    with Driver(tmp_path / "script.py", tmp_path, goes_on_after) as driver:
        yield driver


def test_a_worker_that_has_hardly_begun_is_not_ended_by_the_question_where_it_is(tmp_path):
    with late_worker(tmp_path, "dump_stacks") as driver:
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out == "whole\n"


def is_held_up(driver):
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                return True
    return False


def test_an_interrupt_that_comes_when_a_worker_has_hardly_begun_is_not_lost(tmp_path):
    with late_worker(tmp_path, "interrupt") as driver:
        driver.wait_until(lambda: is_held_up(driver), "a worker is held up")
        driver.send_signal(signal.SIGTERM)
        out, _ = driver.communicate(timeout=LIMIT_S)  # long before the grace is over
    assert out == "interrupted\n"


def test_a_rank_whose_process_does_not_end_takes_no_other_along(tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.controller.dismissal._EXIT_S", 0.3)

    def loop():
        if train.get_context().get_world_rank() == 1:
            threading.Thread(target=time.sleep, args=(600,)).start()
            return None
        time.sleep(1.0)
        return "evaluated"

    trainer = train.DataParallelTrainer(
        loop,
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(name="run", storage_path=tmp_path, progress="quiet"),
    )
    assert trainer.fit().return_value == "evaluated"


def test_starts_that_fail_are_tried_again_while_that_may_help(tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.controller.controller._FIRST_PAUSE_S", 0.01)
    from holdfast.engines.local import group

    start, failed = group.LocalGroup.start, []

    def failing(self, jobs):
        if len(failed) < 2:
            failed.append(True)
            raise train.WorkerStartError("no process to be had")
        start(self, jobs)

    monkeypatch.setattr(group.LocalGroup, "start", failing)
    config = {"name": "run", "storage_path": tmp_path, "progress": "quiet"}
    assert train.DataParallelTrainer(lambda: 5, run_config=train.RunConfig(**config)).fit().return_value == 5
    failed.clear()
    limited = train.RunConfig(**config, failure_config=train.FailureConfig(controller_failure_limit=1))
    with pytest.raises(train.ControllerError, match="no process to be had"):
        train.DataParallelTrainer(lambda: 5, run_config=limited).fit()


def test_attempts_that_reported_nothing_have_logs_of_their_own(tmp_path):
    def loop():
        print("a line")
        raise RuntimeError

    for number in (1, 2):
        with pytest.raises(train.WorkerGroupError):
            train.DataParallelTrainer(
                loop, run_config=train.RunConfig(name="run", storage_path=tmp_path, progress="quiet")
            ).fit()
        log = tmp_path / "run" / ".holdfast" / "logs" / f"attempt_{number:06d}" / "rank_00000.log"
        assert log.read_text().count("a line") == 1


def test_a_script_without_a_main_guard_and_its_globals_travel(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport holdfast as train\nOFFSET = 41\n"
        "class Model:\n    def __init__(self, x): self.x = x\n"
        "def helper(x): return Model(x + OFFSET)\n"
        "def loop(config):\n    m = helper(config['x'])\n    train.report({'x': m.x})\n    return m\n"
        "r = train.DataParallelTrainer(loop, train_loop_config={'x': 1},"
        " scaling_config=train.ScalingConfig(num_workers=2),"
        " run_config=train.RunConfig(storage_path=sys.argv[1], progress='quiet')).fit()\n"
        "print(r.metrics['x'], r.return_value.x, type(r.return_value) is Model)\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split()[:2] == ["42", "42"], done.stderr


def test_fit_leaves_no_process_but_the_idle_zygote_and_no_temporary_file(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    threads = set(threading.enumerate())
    descriptors = psutil.Process().num_fds()
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    for index in range(2):
        run(lambda: train.report({"a": 1}), tmp_path / "runs", name=f"run{index}")
    after = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert len(after) <= 1
    assert set(threading.enumerate()) <= threads
    assert psutil.Process().num_fds() <= descriptors + 2  # the warm zygote's socket and its error file
    assert list(temporary.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("how", ["-c", "stdin", "interactive"])
def test_functions_travel_from_wherever_python_reads_them(tmp_path, how):
    lines = [
        "import holdfast as train",
        "OFFSET = 41",
        "def loop(config): train.report({'x': config['x'] + OFFSET})",
        "",
        "c = train.RunConfig(storage_path=" + repr(str(tmp_path)) + ", progress='quiet')",
        "t = train.DataParallelTrainer(loop, train_loop_config={'x': 1}, run_config=c)",
        "print('found', t.fit().metrics['x'])",
        "",
    ]
    text = "\n".join(lines)
    arguments = {"-c": ["-c", text], "stdin": ["-"], "interactive": ["-i", "-q"]}[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input="" if how == "-c" else text,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "found 42" in done.stdout, done.stderr
