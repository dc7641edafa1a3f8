"""Plain lines: what happened, in order, and never at the cost of the training that it happened to."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from typing import TextIO

import pytest

from holdfast.progress import lines as lines_module
from holdfast.progress import make_progress
from support.waiting import wait_until


def test_a_run_as_a_story() -> None:
    stream = io.StringIO()
    progress = make_progress("plain", "digits", stream, score_attribute="accuracy")
    progress.started(1, 2, None)
    progress.worker_line(1, "hello", False)
    progress.worker_line(0, "oops", True)
    progress.committed("checkpoint_000001", 45_100_000, 0.2134, 0.91)
    progress.failed(1, "rank 1 was killed (SIGKILL)", True)
    progress.started(2, 1, "checkpoint_000001")
    progress.message("rank 1 is late")
    progress.finished("2 checkpoints kept")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "[holdfast digits] attempt 1 runs from the beginning on 2 workers",
        "[rank 1] hello",
        "[rank 0] oops",
        "[holdfast digits] checkpoint_000001 committed (45.1 MB in 0.213 s, accuracy 0.91)",
        "[holdfast digits] attempt 1 failed and is restarted: rank 1 was killed (SIGKILL)",
        "[holdfast digits] attempt 2 runs from checkpoint_000001 on 1 worker",
        "[holdfast digits] warning: rank 1 is late",
        "[holdfast digits] 2 checkpoints kept",
    ]


def test_commits_are_shown_seldom_but_the_last_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "COMMIT_LINE_S", 600.0)
    stream = io.StringIO()
    progress = make_progress("plain", "r", stream)
    progress.committed("checkpoint_000001", 1024, 0.001, None)
    wait_until(lambda: "checkpoint_000001" in stream.getvalue(), "it is shown")
    for index in range(2, 1000):
        progress.committed(f"checkpoint_{index:06d}", 1024, 0.001, None)
    progress.close()
    shown = stream.getvalue().splitlines()
    assert len(shown) == 2
    assert shown[1] == "[holdfast r] checkpoint_000999 committed (1.02 kB in 0.001 s), and 997 before it"


def test_a_held_back_commit_is_shown_when_its_time_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "COMMIT_LINE_S", 0.1)
    stream = io.StringIO()
    progress = make_progress("plain", "r", stream)
    for name in ("first", "second"):
        progress.committed(name, 1, 0.1, None)
        wait_until(lambda name=name: name in stream.getvalue(), "it is shown without any further call")
    progress.close()


def test_workers_stdout_stays_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress("plain", "r")
    progress.worker_line(0, "to stdout", False)
    progress.worker_line(0, "to stderr", True)
    progress.close()
    assert capsys.readouterr() == ("[rank 0] to stdout\n", "[rank 0] to stderr\n")


def test_characters_that_the_stream_does_not_know() -> None:
    raw = io.BytesIO()
    progress = make_progress("plain", "r", io.TextIOWrapper(raw, encoding="ascii"))
    progress.worker_line(0, "π \udcff", False)
    progress.close()
    assert raw.getvalue() == b"[rank 0] \\u03c0 \\udcff\n"


def use_everything(stream: TextIO, mode: str = "plain") -> None:
    progress = make_progress(mode, "r", stream)
    for index in range(50):
        progress.started(1, 2, None)
        progress.reported(index, b"{}")
        progress.worker_line(0, "x" * 100, False)
        progress.committed("c", 1, 0.1, 1.0)
        progress.failed(1, "s", True)
    progress.finished("done")
    progress.close()
    progress.close()
    progress.message("after the end")


def test_a_closed_stream_harms_nobody() -> None:
    stream = io.StringIO()
    stream.close()
    use_everything(stream)


@pytest.mark.parametrize("mode", ["plain", "live"])
def test_a_broken_pipe_harms_nobody(mode: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    before = sys.stdout, sys.stderr
    use_everything(stream, mode)
    assert (sys.stdout, sys.stderr) == before
    with contextlib.suppress(BrokenPipeError):  # of what a buffer still held
        stream.close()


def test_a_reader_that_sleeps_stops_nobody() -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    progress = make_progress("plain", "r", stream)
    begin = time.monotonic()
    for _ in range(30_000):
        progress.worker_line(0, "x" * 100, False)
    assert time.monotonic() - begin < 20  # three megabytes into a pipe that takes 64 KiB
    received = bytearray()
    drain = threading.Thread(
        target=lambda: [received.extend(data) for data in iter(lambda: os.read(reader, 65536), b"")]
    )
    drain.start()
    progress.close()
    stream.close()
    drain.join()
    os.close(reader)
    assert b"lines left out here; the run's log files hold all that workers printed" in received


def test_calls_cost_microseconds() -> None:
    progress = make_progress("plain", "r", io.StringIO())
    progress.started(1, 2, None)

    def batch() -> float:
        begin = time.perf_counter()
        for index in range(1000):
            progress.reported(index, b'{"loss": 1.0}')
        return (time.perf_counter() - begin) / 1000

    assert min(batch() for _ in range(10)) < 50e-6
    progress.close()


def test_threads_may_call_at_once() -> None:
    stream = io.StringIO()
    progress = make_progress("plain", "r", stream)
    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(target=lambda: [progress.worker_line(0, "line", False) for _ in range(500)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch_interval_s)
    progress.close()
    assert stream.getvalue().splitlines() == ["[rank 0] line"] * 2000


def test_no_thread_outlives_close() -> None:
    progress = make_progress("plain", "r", io.StringIO())
    progress.message("x")
    progress.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "holdfast-progress"]
