"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import holdfast as train
from holdfast.controller.ends import Ends
from holdfast.controller.failure import from_exit
from holdfast.controller.group import Exit

SCRIPT = """
import os, signal, sys, tempfile, time
from pathlib import Path
import holdfast as train
base, behaviour, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def loop():
    for step in range(10**9):
        try:
            with tempfile.TemporaryDirectory(dir=base / "tmp") as directory:
                Path(directory, "step").write_text(str(step) * 1000)
                train.report({"step": step}, train.Checkpoint.from_directory(directory) if train.get_context().get_world_rank() == 0 else None)
            (base / "up").touch()
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
        run_config=train.RunConfig(name="run", storage_path=base, checkpoint_config=train.CheckpointConfig(num_to_keep=3))).fit()
except train.TrainingInterrupted as error:
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    print("interrupted", error.signum, error.result.metrics["step"], error.result.checkpoint.path, flush=True)
"""


def start(tmp_path, behaviour="good", workers=2):
    (tmp_path / "tmp").mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    driver = subprocess.Popen(
        [sys.executable, script, tmp_path, behaviour, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    return driver


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_signal_ends_the_run_in_order_and_returns_the_result(tmp_path, signum, workers):
    driver = start(tmp_path, workers=workers)
    tree = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signum)
    out, err = driver.communicate(timeout=30)
    word, number, step, path = out.split()[-4:]
    assert (word, int(number)) == ("interrupted", signum), (out, err)
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
    driver = start(tmp_path, "busy", workers=workers)
    begin = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=30)
    assert out.split()[-4:-1] == ["interrupted", str(int(signal.SIGTERM)), "0"], (out, err)
    assert time.monotonic() - begin < 10  # long before the grace is over
    assert list((tmp_path / "tmp").iterdir()) == []
    assert driver.returncode == 0


def test_the_second_signal_ends_it_at_once(tmp_path):
    driver = start(tmp_path, "stubborn")
    driver.send_signal(signal.SIGINT)
    threading.Event().wait(0.3)
    assert driver.poll() is None
    begin = time.monotonic()
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=20)
    assert "interrupted" in out, (out, err)
    assert time.monotonic() - begin < 5
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
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path, str(workers), str(grace_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    for _ in range(signals):
        driver.send_signal(signal.SIGINT)
        threading.Event().wait(0.2)
    out, _ = driver.communicate(timeout=10)
    assert out.split()[-1] == "interrupted"
    assert train.Run(tmp_path / "run").checkpoints == []
    assert not [name for name in os.listdir(tmp_path / "run") if "partial" in name]


def test_what_a_shell_put_into_the_background_ignores_its_ctrl_c(tmp_path):
    script = SCRIPT.replace("10**9", "100")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "script.py").write_text("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + script)
    driver = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path, "good", "2"], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (0, b"")


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
    (tmp_path / "script.py").write_text(FETCHING)
    command = [sys.executable, tmp_path / "script.py", tmp_path, where]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    driver.send_signal(signum)
    out, _ = driver.communicate(timeout=30)
    assert out.strip() == f"interrupted {int(signum)} {result}"
    assert driver.returncode == 0


def test_a_worker_that_is_interrupted_before_its_function_ends_by_the_signal():
    connection, files = socket.socketpair(), socket.socketpair()
    with open(os.devnull, "w") as out, open(os.devnull, "w") as err:
        descriptors = (connection[1].fileno(), files[1].fileno(), out.fileno(), err.fileno())
        worker = subprocess.Popen(
            [sys.executable, "-m", "holdfast.engines.local.child", *map(str, descriptors), str(os.getpid())],
            pass_fds=descriptors,
        )
        deadline = time.monotonic() + 30
        while os.getsid(worker.pid) != worker.pid:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        threading.Event().wait(0.3)  # it waits for its job
        worker.send_signal(signal.SIGINT)
        assert worker.wait(30) == -signal.SIGINT
    for each in (*connection, *files):
        each.close()


def test_a_rank_that_was_interrupted_because_another_had_failed_is_no_failure_of_its_own():
    ends = Ends()
    assert ends.fail(0, ValueError("of itself"))
    assert not ends.fail(1, from_exit(1, Exit(-signal.SIGINT)), interrupted=True)
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
    script = SCRIPT.replace("storage_path=base,", "storage_path=base, stop_grace_s=0.3,")
    assert script != SCRIPT
    (tmp_path / "tmp").mkdir()
    path = tmp_path / "script.py"
    path.write_text(script)
    driver = subprocess.Popen([sys.executable, path, tmp_path, "stubborn", "2"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=20)
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
