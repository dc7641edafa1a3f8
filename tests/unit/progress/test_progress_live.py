"""The live line: says where the run stands, leaves other output whole, and gives the terminal back."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from holdfast.metrics import encode_metrics
from holdfast.progress import Progress, make_progress
from holdfast.progress.status import Status, format_bytes, format_number
from support.fake_terminal import FakeTerminal
from support.waiting import wait_until


@pytest.fixture
def terminal() -> Iterator[FakeTerminal]:
    made = FakeTerminal()
    yield made
    made.close()


def live(terminal: FakeTerminal) -> Progress:
    return make_progress("live", "digits", terminal.stream, score_attribute="accuracy")


def test_the_line_says_where_the_run_stands(terminal: FakeTerminal) -> None:
    progress = live(terminal)
    progress.started(1, 2, None)
    progress.reported(7, encode_metrics({"loss": 0.5, "accuracy": 0.91237}))
    progress.committed("checkpoint_000007", 10, 0.1, 0.91237)
    terminal.wait_for("digits · training · report 7 · accuracy 0.9124, best 0.9124")
    progress.uploading("checkpoint_000008", 200_000_000)
    progress.uploaded_bytes(50_000_000)
    terminal.wait_for("accuracy 0.9124, best 0.9124 · saving 25 % at ")
    progress.committed("checkpoint_000008", 10, 0.1, 0.5)
    progress.failed(1, "rank 1 was killed", True)
    terminal.wait_for("digits · restarting · report 7")
    progress.started(2, 2, "checkpoint_000008")
    text = terminal.wait_for("digits · training, attempt 2 · report 7")
    assert "attempt 1 failed and is restarted: rank 1 was killed" in text
    assert "attempt 2 runs from checkpoint_000008 on 2 workers" in text
    progress.finished("finished: 2 checkpoints kept")
    progress.close()
    terminal.wait_for("finished: 2 checkpoints kept")


def test_workers_lines_come_above_it_with_their_colours_and_whole(terminal: FakeTerminal) -> None:
    progress = live(terminal)
    progress.started(1, 1, None)
    progress.worker_line(0, "a [bold]tag[/bold] and \x1b[31mred\x1b[0m " + "long " * 100, False)
    progress.close()
    text = terminal.wait_for("a [bold]tag[/bold] and red")
    assert "long " * 100 in text  # not broken into lines of the terminal's width by us
    assert "\x1b[31mred" in terminal.text()


def test_the_terminal_is_given_back(terminal: FakeTerminal) -> None:
    before = sys.stdout, sys.stderr
    progress = live(terminal)
    progress.started(1, 1, None)
    terminal.wait_for("training")
    progress.close()
    terminal.stream.flush()
    terminal.wait_for("training")
    assert (sys.stdout, sys.stderr) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "holdfast-progress"]
    terminal.close()
    # The cursor is shown again, after it was hidden.
    assert terminal.text().rindex("\x1b[?25h") > terminal.text().rindex("\x1b[?25l")


def test_it_is_drawn_ten_times_a_second_at_most(terminal: FakeTerminal) -> None:
    progress = live(terminal)
    progress.started(1, 1, None)
    begin = time.monotonic()
    index = 0
    while time.monotonic() - begin < 0.7 or index < 1000:
        index += 1
        progress.reported(index, b"{}")
    progress.close()
    elapsed_s = time.monotonic() - begin
    terminal.close()
    drawn = terminal.text().count("report ")
    assert 1 <= drawn <= elapsed_s * 10 + 3


def test_nothing_is_drawn_while_nothing_happens(terminal: FakeTerminal) -> None:
    progress = live(terminal)
    progress.started(1, 1, None)
    terminal.wait_for("training")

    def rests() -> bool:
        before = terminal.text()
        time.sleep(0.35)
        return terminal.text() == before

    wait_until(rests, "what there was is drawn, and nothing is drawn again")
    progress.close()


def test_a_narrow_terminal_gets_one_line() -> None:
    terminal = FakeTerminal(columns=28)
    progress = live(terminal)
    progress.started(1, 1, None)
    progress.reported(123456, encode_metrics({"accuracy": 0.123456789}))
    terminal.wait_for("training · report")
    time.sleep(0.15)
    progress.close()
    terminal.close()
    drawn = terminal.text().partition("training")[2]
    assert "report" in drawn
    assert "accuracy" not in drawn


def test_stdout_of_workers_in_a_file_while_stderr_is_a_terminal(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    progress = make_progress("live", "digits")
    progress.started(1, 1, None)
    progress.worker_line(0, "to stdout", False)
    progress.worker_line(0, "to stderr", True)
    progress.close()
    terminal.wait_for("[rank 0] to stderr")
    assert out.getvalue() == "[rank 0] to stdout\n"
    assert "to stdout" not in terminal.text()


def test_without_a_score_the_first_numbers_are_shown() -> None:
    status = Status("r", None, "max")
    status.report = 3
    status.metrics = encode_metrics({"name": "x", "loss": 0.5, "ok": True, "val": {"f1": 2}, "a": float("nan"), "b": 1})
    assert list(status.parts()) == ["r", "starting", "report 3", "loss 0.5", "val/f1 2", "a nan"]


@pytest.mark.parametrize("metrics", [b"{", b"[]", b'{"accuracy": "high"}', b'{"accuracy": null}'])
def test_metrics_that_cannot_be_shown_are_left_out(metrics: bytes) -> None:
    status = Status("r", "accuracy", "max")
    status.metrics = metrics
    assert list(status.parts()) == ["r", "starting"]


@pytest.mark.parametrize(("order", "best"), [("max", 3.0), ("min", 1.0)])
def test_the_best_is_known(order: str, best: float) -> None:
    status = Status("r", "loss", order)  # type: ignore[arg-type]
    for score in (2.0, 1.0, None, float("nan"), 3.0):
        status.begin_upload(0)
        status.end_upload(score)
    assert status.best == best


def test_numbers_for_people() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 45_100_000, 999_999, 2**40, 1e21)] == [
        "0 B", "999 B", "1 kB", "45.1 MB", "1 MB", "1.1 TB", "1e+06 PB",
    ]  # fmt: skip
    assert [format_number(n) for n in (3, 0.123456, 1e-7, float("nan"))] == ["3", "0.1235", "1e-07", "nan"]
