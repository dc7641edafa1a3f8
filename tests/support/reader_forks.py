"""Readers of a remote checkpoint that are forked, not started: in milliseconds, so that dozens of them can be killed.

A helper process (`ReaderForks`) imports all that a reader needs, uses none of it, and forks a reader for each order. Orders and
answers are lines of JSON on its standard streams.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.errors import DamagedCheckpointError, StorageError
from holdfast.persistence.restore import default_cache_dir

WHOLE, WRONG, FAILED, DAMAGED = 0, 1, 3, 4
"""How a reader ends: it saw what it was to see; something else; a `StorageError`; a `DamagedCheckpointError`."""

_TESTS = Path(__file__).parent.parent
_LIMIT_S = 60.0
# What changes, locks or opens something below the copies: a death between two of these is a death at the later one.
_STEPS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock"})


def digests(directory: str | Path) -> dict[str, str]:
    """What a reader sees of a checkpoint's own files."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


class ReaderForks:
    """The helper process, as a test speaks to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, order: str, **arguments: Any) -> Any:
        """Has an order carried out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"order": order, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the helper process has ended"
        return json.loads(answer)

    def start(self, url: str, expected: dict[str, str], *, dies: bool = False, dies_at: int = 0) -> int:
        """Forks a reader.

        Args:
            expected: What it is to see, as `digests`.
            dies: It is killed while it reads.
            dies_at: It is killed just before this step in the directory of copies, counted from 1.
        """
        return int(self.ask("start", url=url, expected=expected, dies=dies, dies_at=dies_at))

    def join(self, reader: int) -> int:
        """How a reader ended: as said above, or minus the signal that killed it."""
        return int(self.ask("join", reader=reader))


@contextmanager
def reader_forks() -> Iterator[ReaderForks]:
    """Starts the helper process, and ends it with all its readers."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from support.reader_forks import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS), *sys.path])},
    )
    try:
        yield ReaderForks(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# What follows runs in the helper process and in its children.


def serve() -> None:
    """Carries out orders until there are no more."""
    # Imported before the first fork, and not used: what uses it has threads.
    import obstore.store  # noqa: F401

    import holdfast.persistence.download
    import holdfast.stores.object_store  # noqa: F401

    orders: dict[str, Callable[..., Any]] = {"start": _start, "join": _join, "wave": _wave}
    for line in sys.stdin:
        arguments = json.loads(line)
        print(json.dumps(orders[arguments.pop("order")](**arguments)), flush=True)


def _start(url: str, expected: dict[str, str], *, dies: bool, dies_at: int) -> int:
    def read() -> None:
        if dies_at:
            _die_at(dies_at)
        with Checkpoint(url).as_directory() as directory:
            assert digests(directory) == expected
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)

    return _fork(read)


def _join(reader: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])


def _fork(function: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    outcome = WRONG
    try:
        function()
        outcome = WHOLE
    except DamagedCheckpointError:
        outcome = DAMAGED
    except StorageError:
        outcome = FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(outcome)


def _die_at(number: int) -> None:
    cache = str(default_cache_dir())
    count = 0
    lock = threading.Lock()

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _STEPS:
            return
        if isinstance(arguments[0], str | os.PathLike) and not os.fspath(arguments[0]).startswith(cache):
            return
        with lock:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)


def _wave(url: str, expected: dict[str, str], *, seed: int, processes: int, threads: int) -> dict[str, Any]:
    """Many processes read at once, each in several threads; some are killed, the others see the same files all the time.

    Two of those that are killed are whoever fetches the checkpoint at that moment, one may be doing anything, one is leaving.

    Returns:
        How many were killed before all others had their files, how many in all, and how the others ended.
    """
    chance = random.Random(seed)
    told, tell = os.pipe()
    gate, hold = os.pipe()

    def read() -> None:
        os.close(hold)
        os.close(told)
        failures: list[BaseException] = []
        runners = [
            threading.Thread(target=_read_and_stay, args=(url, expected, tell, gate, failures)) for _ in range(threads)
        ]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
        for failure in failures:
            raise failure

    alive = {_fork(read) for _ in range(processes)}
    os.close(tell)
    os.close(gate)

    def kill(reader: int) -> None:
        os.kill(reader, signal.SIGKILL)
        alive.discard(reader)
        _join(reader)

    for _ in range(2):
        downloader = _await_downloader(alive)
        if downloader is not None:
            time.sleep(chance.random() * 0.05)
        kill(downloader or chance.choice(sorted(alive)))
    time.sleep(chance.random() * 0.1)
    kill(chance.choice(sorted(alive)))
    early = processes - len(alive)
    reading: dict[int, int] = {}
    while sum(reading.get(reader, 0) for reader in alive) < threads * len(alive):
        lines = [int(line) for line in os.read(told, 4096).split()]
        if not lines or 0 in lines:
            break  # somebody has failed: his end tells why
        for reader in lines:
            reading[reader] = reading.get(reader, 0) + 1
    os.close(hold)
    time.sleep(chance.random() * 0.01)
    kill(chance.choice(sorted(alive)))
    os.close(told)
    return {"early": early, "killed": processes - len(alive), "ends": [_join(reader) for reader in alive]}


def _read_and_stay(url: str, expected: dict[str, str], tell: int, gate: int, failures: list[BaseException]) -> None:
    try:
        with Checkpoint(url).as_directory() as directory:
            assert digests(directory) == expected
            os.write(tell, b"%d\n" % os.getpid())  # short enough to stay in one piece
            os.read(gate, 1)
            assert digests(directory) == expected
    except BaseException as error:
        failures.append(error)
        os.write(tell, b"0\n")


def _await_downloader(readers: set[int]) -> int | None:
    """Who fetches now, as the gate of the copy says; None where somebody has fetched already."""
    deadline_s = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline_s:
        for gate in default_cache_dir().glob("*/gate"):
            if (gate.parent / "data").is_dir():
                return None
            with contextlib.suppress(OSError, ValueError):
                reader = int(gate.read_text().rpartition(" ")[2])
                if reader in readers:
                    return reader
        time.sleep(0.001)
    raise AssertionError("nobody fetches")
