"""Waiting for what another process or thread is to do. Nobody measures here: the limit is for what never comes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

LIMIT_S = 60.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Returns when it holds.

    Args:
        what: What is waited for, as a sentence that is true then.
    """
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not in {LIMIT_S:.0f} s: {what}"
        time.sleep(0.005)


def await_file(path: Path | str) -> None:
    """Returns when somebody has made a file."""
    wait_until(Path(path).exists, f"{path} is there")


def await_end(process: int) -> None:
    """Returns when a process that is not our child is gone; whoever is to reap it may take his time."""
    with contextlib.suppress(psutil.NoSuchProcess):
        watched = psutil.Process(process)
        wait_until(lambda: watched.status() == psutil.STATUS_ZOMBIE, f"process {process} has ended")


@contextlib.contextmanager
def beside(function: Callable[[], None]) -> Iterator[None]:
    """Calls it in a thread beside the block, and has its errors fail the test; nothing of it outlives the block."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    for error in errors:
        raise error
