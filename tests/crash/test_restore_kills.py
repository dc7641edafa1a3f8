"""Guarantee 7 of the pipeline: one download however many ask; a killed process holds and leaves nothing."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.drivers import Driver
from support.restore_readers import downloads, make_remote, start_reader
from support.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes")

NUM_FILES = 4
WHOLE = f"reading {NUM_FILES + 1} "


Start = Callable[..., Driver]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a reader, as `start_reader` does; none outlives the test."""
    with ExitStack() as readers:
        yield lambda **options: readers.enter_context(start_reader(tmp_path, **options))


def line_of(reader: Driver) -> str:
    assert reader.stdout is not None
    return reader.stdout.readline()


def finish(reader: Driver) -> None:
    output, _ = reader.communicate(timeout=LIMIT_S)
    assert reader.returncode == 0, output


def kill(reader: Driver) -> None:
    reader.send_signal(signal.SIGKILL)
    reader.communicate(timeout=LIMIT_S)


def left_over(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "cache").rglob("*"))


def test_many_processes_share_one_download_and_the_last_removes_it(tmp_path: Path, start: Start) -> None:
    make_remote(tmp_path, num_files=NUM_FILES)
    readers = [start(pause_s=0.02, hold_s=-1) for _ in range(6)]
    for reader in readers:
        assert line_of(reader).startswith(WHOLE)
    assert downloads(tmp_path) == NUM_FILES
    for reader in readers:
        finish(reader)
    assert left_over(tmp_path) == []


def test_a_reader_killed_while_downloading_holds_up_nobody(tmp_path: Path, start: Start) -> None:
    make_remote(tmp_path, num_files=NUM_FILES)
    victim = start(pause_s=30, hold_s=0)
    wait_until(lambda: downloads(tmp_path) > 0, "the download began")
    waiter = start(hold_s=-1)
    kill(victim)
    assert line_of(waiter).startswith(WHOLE)
    # The victim's partial directory went with the waiter's own download.
    assert [name for name in left_over(tmp_path) if "partial" in name] == []
    finish(waiter)
    assert left_over(tmp_path) == []


def test_what_a_killed_reader_leaves_is_swept_by_the_next(tmp_path: Path, start: Start) -> None:
    make_remote(tmp_path, num_files=NUM_FILES)
    victim = start(hold_s=-1)
    assert line_of(victim).startswith(WHOLE)
    kill(victim)
    assert left_over(tmp_path) != []
    finish(start())
    assert left_over(tmp_path) == []


def test_a_reader_keeps_its_files_while_others_come_and_die(tmp_path: Path, start: Start) -> None:
    make_remote(tmp_path, num_files=NUM_FILES)
    chance = random.Random(0)
    keeper = start(hold_s=-1)
    assert line_of(keeper).startswith(WHOLE)
    others = [start(hold_s=chance.choice([0, 0.01, -1])) for _ in range(7)]
    for other in others[::2]:
        time.sleep(chance.random() * 0.1)
        kill(other)
    for other in others[1::2]:
        finish(other)
    # Nobody downloaded a second time, as nobody removed what the keeper reads (it checks that at its end).
    assert downloads(tmp_path) == NUM_FILES
    finish(keeper)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("seed", range(3))
def test_readers_that_come_go_and_die_at_any_time_see_whole_copies(tmp_path: Path, start: Start, seed: int) -> None:
    make_remote(tmp_path, num_files=NUM_FILES)
    chance = random.Random(seed)
    readers = []
    for _ in range(8):
        readers.append(start(pause_s=chance.choice([0, 0.02]), hold_s=chance.choice([0, 0.05])))
        time.sleep(chance.random() * 0.05)
    for reader in readers[::3]:
        time.sleep(chance.random() * 0.05)
        kill(reader)
    for number, reader in enumerate(readers):
        if number % 3:
            output, _ = reader.communicate(timeout=LIMIT_S)
            assert reader.returncode == 0, output
            assert output.startswith(WHOLE)
            assert output.endswith("left\n")
    finish(start())
    assert left_over(tmp_path) == []
