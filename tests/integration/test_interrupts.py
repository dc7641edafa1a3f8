"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path

import psutil
import pytest

import holdfast as train
from holdfast.controller.ends import Ends
from holdfast.controller.failure import from_exit
from holdfast.controller.group import Exit
from holdfast.nudge import NUDGE
from support.drivers import Driver
from support.waiting import LIMIT_S, wait_until

# Those who are to unwind at their next call are given as long for it as they need.
SCRIPT = """
import os, signal, sys, tempfile, time
from pathlib import Path
import holdfast as train
import holdfast.controller.dismissal as dismissal
base, behaviour, workers, grace_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if behaviour == "good":
    dismissal._NEXT_CALL_S = grace_s
def loop():
    for step in range(10**9):
        try:
            with tempfile.TemporaryDirectory(dir=base / "tmp") as directory:
                Path(directory, "step").write_text(str(step) * 1000)
                train.report({"step": step}, train.Checkpoint.from_directory(directory) if train.get_context().get_world_rank() == 0 else None)
            (base / f"up-{train.get_context().get_world_rank()}").touch()
            if behaviour == "busy":
                time.sleep(600)
        except KeyboardInterrupt:
            if behaviour != "stubborn":
                raise
            while True:
                try:
                    time.sleep(600)
                except KeyboardInterrupt:
                    pass
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
try:
    train.DataParallelTrainer(loop, scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(name="run", storage_path=base, stop_grace_s=grace_s,
            checkpoint_config=train.CheckpointConfig(num_to_keep=3))).fit()
except train.TrainingInterrupted as error:
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    print("interrupted", error.signum, error.result.metrics["step"], error.result.checkpoint.path, flush=True)
"""


@contextlib.contextmanager
def running(tmp_path, behaviour="good", workers=2, grace_s=600.0, script=SCRIPT):
    """A driver whose workers have each made a report."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "script.py").write_text(script)
    with Driver(tmp_path / "script.py", tmp_path, behaviour, workers, grace_s) as driver:
        driver.await_file(*[tmp_path / f"up-{rank}" for rank in range(max(1, workers))])
        yield driver


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_signal_ends_the_run_in_order_and_returns_the_result(tmp_path, signum, workers):
    with running(tmp_path, workers=workers) as driver:
        tree = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signum)
        out, _ = driver.communicate(timeout=LIMIT_S)
    word, number, step, path = out.split()[-4:]
    assert (word, int(number)) == ("interrupted", signum), out
    found = train.Run(tmp_path / "run")
    assert found.latest.checkpoint.path == path
    assert found.latest.metrics["step"] == int(step)
    assert all(problems == [] for problems in found.verify().values())
    assert not [p for p in (tmp_path / "run").iterdir() if "partial" in p.name or "deleting" in p.name]
    assert list((tmp_path / "tmp").iterdir()) == []  # the workers could unwind
    assert not [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert driver.returncode == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_function_that_is_busy_elsewhere_is_interrupted_there(tmp_path, workers):
    with running(tmp_path, "busy", workers=workers) as driver:
        driver.send_signal(signal.SIGTERM)
        out, _ = driver.communicate(timeout=LIMIT_S)  # long before the grace is over
    assert out.split()[-4:-1] == ["interrupted", str(int(signal.SIGTERM)), "0"], out
    assert list((tmp_path / "tmp").iterdir()) == []
    assert driver.returncode == 0


LOST = """
import ctypes, functools, operator, os, signal, sys, time
from collections import deque
import holdfast as train
def loop():
    # No instruction of Python's, and so no look at its signals, is between the two calls.
    calls = functools.partial(ctypes.PyDLL(None).kill, os.getpid(), signal.SIGTERM), functools.partial(time.sleep, 600)
    deque(map(operator.call, calls), maxlen=0)
try:
    train.DataParallelTrainer(loop, scaling_config=train.ScalingConfig(num_workers=0),
        run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet")).fit()
except train.TrainingInterrupted as error:
    print("interrupted", int(error.signum), flush=True)
"""


def test_a_signal_that_comes_just_before_the_function_waits_is_seen(tmp_path):
    with Driver(LOST, tmp_path) as driver:
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out == "interrupted 15\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_catches_nothing_ends_with_the_status_of_the_signal(tmp_path, signum):
    script = SCRIPT.replace("except train.TrainingInterrupted", "except ArithmeticError")
    with running(tmp_path, script=script) as driver:
        driver.send_signal(signum)
        driver.communicate(timeout=LIMIT_S)
        last = driver.said().splitlines()[-1]
    assert driver.returncode == 128 + signum
    assert last.startswith("holdfast.errors.TrainingInterrupted: run 'run' was stopped by SIG")


LOST_IN_WORKER = """
import ctypes, functools, operator, signal, sys, time
from collections import deque
from pathlib import Path
import holdfast as train
def loop(config):
    libc, signals = ctypes.PyDLL(None), ctypes.create_string_buffer(1024)
    libc.sigaddset(signals, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    Path(config["base"], "up").touch()
    while signal.SIGINT not in signal.sigpending():
        time.sleep(0.01)
    Path(config["base"], "pending").touch()
    calls = functools.partial(libc.pthread_sigmask, int(signal.SIG_UNBLOCK), signals, None), functools.partial(time.sleep, 600)
    deque(map(operator.call, calls), maxlen=0)
try:
    train.DataParallelTrainer(loop, train_loop_config={"base": sys.argv[1]},
        run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet", stop_grace_s=600)).fit()
except train.TrainingInterrupted as error:
    print("interrupted", int(error.signum), flush=True)
"""


def test_an_interrupt_that_comes_just_before_a_worker_waits_is_seen(tmp_path):
    with Driver(LOST_IN_WORKER, tmp_path) as driver:
        driver.await_file(tmp_path / "up")
        driver.send_signal(signal.SIGTERM)
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert (tmp_path / "pending").exists()
    assert out == "interrupted 15\n"


# A signal that comes before the one before it was acted on is lost in it.
STOPPING = "stopping: workers are asked to end"


def test_the_second_signal_ends_it_at_once(tmp_path):
    with running(tmp_path, "stubborn") as driver:
        driver.send_signal(signal.SIGINT)
        driver.await_words(STOPPING)
        threading.Event().wait(0.3)
        assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert "interrupted" in out
    assert all(problems == [] for problems in train.Run(tmp_path / "run").verify().values())


STORING = """
import os, signal, sys, tempfile, time
from pathlib import Path
import holdfast as train, holdfast.stores.local as local_store
base = Path(sys.argv[1])
copy = local_store.copy_bytes
def hanging(source, target, size_bytes, hasher):
    (base / "up").touch()
    while True:
        hasher.update(b"x")  # tells, and is told to stop, as a long copy is
        time.sleep(0.01)
local_store.copy_bytes = hanging
def loop():
    with tempfile.TemporaryDirectory() as directory:
        with open(Path(directory, "model"), "wb") as file:
            file.truncate(100 << 20)
        train.report({}, train.Checkpoint(directory))
try:
    train.DataParallelTrainer(loop, scaling_config=train.ScalingConfig(num_workers=int(sys.argv[2])),
        run_config=train.RunConfig(name="run", storage_path=base, stop_grace_s=float(sys.argv[3]))).fit()
except train.TrainingInterrupted as error:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("grace_s", "signals"), [(600, 2), (0.3, 1)])
def test_storage_that_takes_for_ever_does_not_hold_up_the_end(tmp_path, workers, grace_s, signals):
    (tmp_path / "script.py").write_text(STORING)
    with Driver(tmp_path / "script.py", tmp_path, workers, grace_s) as driver:
        driver.await_file(tmp_path / "up")
        driver.send_signal(signal.SIGINT)
        driver.await_words(STOPPING)
        if signals > 1:
            driver.send_signal(signal.SIGINT)
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out.split()[-1] == "interrupted"
    assert train.Run(tmp_path / "run").checkpoints == []
    assert not [name for name in os.listdir(tmp_path / "run") if "partial" in name]


def test_what_a_shell_put_into_the_background_ignores_its_ctrl_c(tmp_path):
    script = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SCRIPT.replace("10**9", "100")
    with running(tmp_path, script=script) as driver:
        driver.send_signal(signal.SIGINT)
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert (driver.returncode, out) == (0, "")


FETCHING = """
import sys, time
from pathlib import Path
import holdfast as train, holdfast.origin as origin, holdfast.persistence.writer as writer
base, where = Path(sys.argv[1]), sys.argv[2]
def hanging(*args, **kwargs):
    (base / "up").touch()
    time.sleep(600)
if where == "fetch":
    origin.Origin.open = hanging
else:
    writer.lease.acquire = hanging  # as behind a driver that may still live
try:
    train.DataParallelTrainer(lambda: None, resume_from=base / "elsewhere",
        run_config=train.RunConfig(name="run", storage_path=base, progress="quiet")).fit()
except train.TrainingInterrupted as error:
    print("interrupted", int(error.signum), error.result and (error.result.checkpoint, error.result.error is error))
"""


@pytest.mark.parametrize(("where", "result"), [("fetch", "(None, True)"), ("open", "None")])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_comes_before_the_first_attempt_is_interrupted_where_it_is(tmp_path, signum, where, result):
    with Driver(FETCHING, tmp_path, where) as driver:
        driver.await_file(tmp_path / "up")
        driver.send_signal(signum)
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out.strip() == f"interrupted {int(signum)} {result}"
    assert driver.returncode == 0


CONCLUDING = """
import sys, tempfile, time
from pathlib import Path
import holdfast as train, holdfast.result as result
base = Path(sys.argv[1])
real = result.Result.of_run
def slow(*args, **kwargs):
    (base / "concludes").touch()
    while not (base / "signalled").exists():
        time.sleep(0.01)
    return real(*args, **kwargs)
result.Result.of_run = slow
def loop():
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "model").write_text("weights")
        train.report({}, train.Checkpoint(directory))
    (base / "up").touch()
    time.sleep(600 if sys.argv[2] == "interrupted" else 0)
try:
    print("finished", train.DataParallelTrainer(loop,
        run_config=train.RunConfig(name="run", storage_path=base, progress="quiet")).fit().checkpoint is not None)
except train.TrainingInterrupted as error:
    print("interrupted", error.result.checkpoint is not None)
except KeyboardInterrupt:
    print("later")
"""


@pytest.mark.parametrize(("ends", "expected"), [("interrupted", "interrupted True"), ("returns", "later")])
def test_a_signal_while_the_result_is_made_takes_nothing_away(tmp_path, ends, expected):
    with Driver(CONCLUDING, tmp_path, ends) as driver:
        driver.await_file(tmp_path / "up")
        if ends == "interrupted":
            driver.send_signal(signal.SIGINT)
        driver.await_file(tmp_path / "concludes")
        driver.send_signal(signal.SIGINT)
        (tmp_path / "signalled").touch()
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out.strip() == expected


def unread(connection):
    """How many bytes nobody has read yet."""
    found = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, found)
    return found[0]


def test_a_worker_that_is_interrupted_before_its_function_ends_by_the_signal():
    connection, files = socket.socketpair(), socket.socketpair()
    with open(os.devnull, "w") as out, open(os.devnull, "w") as err:
        descriptors = (connection[1].fileno(), files[1].fileno(), out.fileno(), err.fileno())
        worker = subprocess.Popen(
            [sys.executable, "-m", "holdfast.engines.local.child", *map(str, descriptors), str(os.getpid())],
            pass_fds=descriptors,
        )
        try:
            connection[0].send(b"\0")  # of a message that never comes whole
            wait_until(lambda: not unread(connection[1]), "it waits for its job")
            worker.send_signal(signal.SIGINT)

            def has_ended():
                worker.send_signal(NUDGE)  # as the driver does, for one that comes just before a wait
                return worker.poll() is not None

            wait_until(has_ended, "it has ended")
            assert worker.returncode == -signal.SIGINT
        finally:
            worker.kill()
            worker.wait()
    for each in (*connection, *files):
        each.close()


def test_a_rank_that_was_interrupted_because_another_had_failed_is_no_failure_of_its_own():
    ends = Ends()
    assert ends.fail(0, ValueError("of itself"))
    assert not ends.fail(1, from_exit(1, Exit(-signal.SIGINT)), by_us=True)
    assert not ends.fail(2, from_exit(2, Exit(-signal.SIGSEGV)))
    assert (set(ends.failures), set(ends.aftermath)) == ({0, 2}, {1})


def test_sys_exit_in_the_own_process_is_a_failure_not_an_interrupt(tmp_path):
    with pytest.raises(train.WorkerGroupError) as caught:
        train.DataParallelTrainer(
            lambda: sys.exit(3),
            scaling_config=train.ScalingConfig(num_workers=0),
            run_config=train.RunConfig(name="run", storage_path=tmp_path, progress="quiet"),
        ).fit()
    assert isinstance(caught.value.worker_failures[0], SystemExit)


def test_workers_that_do_not_end_are_killed_after_the_grace(tmp_path):
    with running(tmp_path, "stubborn", grace_s=0.3) as driver:
        driver.send_signal(signal.SIGINT)
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert "interrupted" in out


def test_fit_outside_the_main_thread_leaves_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    results = []

    def fit():
        trainer = train.DataParallelTrainer(
            lambda: os.getpid(), run_config=train.RunConfig(name="run", storage_path=tmp_path, progress="quiet")
        )
        results.append(trainer.fit())

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join(60)
    assert results[0].return_value != os.getpid()
    assert signal.getsignal(signal.SIGINT) is before
    assert Path(results[0].path).is_dir()
