"""Which display a person gets, and that quiet ones still say what must be known."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from holdfast.errors import ConfigurationError
from holdfast.progress import make_progress
from support.fake_terminal import FakeTerminal


@pytest.fixture
def terminal() -> Iterator[FakeTerminal]:
    made = FakeTerminal()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_PROGRESS", raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def kind_of(mode: str, stream: object) -> str:
    progress = make_progress(mode, "run", stream)  # type: ignore[arg-type]
    progress.close()
    return type(progress).__name__


def test_auto_is_live_on_a_terminal_only(terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of("auto", terminal.stream) == "LiveProgress"
    assert kind_of("auto", io.StringIO()) == "LineProgress"
    monkeypatch.setenv("CI", "true")
    assert kind_of("auto", terminal.stream) == "LineProgress"
    monkeypatch.delenv("CI")
    monkeypatch.setenv("TERM", "dumb")
    assert kind_of("auto", terminal.stream) == "LineProgress"


def test_the_environment_decides_for_auto_alone(terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_PROGRESS", "quiet")
    assert kind_of("auto", terminal.stream) == "QuietProgress"
    assert kind_of("plain", terminal.stream) == "LineProgress"
    monkeypatch.setenv("HOLDFAST_PROGRESS", "loud")
    with pytest.raises(
        ConfigurationError, match="HOLDFAST_PROGRESS must be 'auto', 'live', 'plain' or 'quiet', not 'loud'"
    ):
        make_progress("auto", "run")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"RunConfig\.progress"):
        make_progress("fancy", "run")


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert kind_of("auto", stream) == "LineProgress"


def test_no_stderr_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert kind_of("auto", None) == "QuietProgress"


def test_quiet_warns_through_logging(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress("quiet", "run")
    with caplog.at_level(logging.INFO, logger="holdfast"):
        progress.started(1, 2, None)
        progress.reported(1, b"{}")
        progress.uploading("checkpoint_000001", 10)
        progress.uploaded_bytes(10)
        progress.committed("checkpoint_000001", 10, 0.1, None)
        progress.worker_line(0, "hello", False)
        progress.message("rank 1 is late")
        progress.failed(1, "rank 1 was killed", True)
        progress.failed(2, "rank 1 was killed", False)
        progress.finished("done")
        progress.close()
    assert caplog.messages == ["run: rank 1 is late", "run: attempt 1 failed and is restarted: rank 1 was killed"]
    assert capsys.readouterr() == ("", "")


def test_plain_display_does_not_pay_for_the_live_one() -> None:
    code = "import sys, holdfast.progress; holdfast.progress.make_progress('plain', 'r').close(); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
