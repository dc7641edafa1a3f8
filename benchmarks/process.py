"""Runs a job in a process of its own and measures it with everything it starts."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ORPHANS_S = 15.0
_SAMPLE_S = 0.2


class JobError(RuntimeError):
    """A job ended badly, or not at all."""


@dataclass(frozen=True)
class Usage:
    """What a job took: seconds on the wall, seconds of CPU of all its processes."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Footprint:
    """What a job holds at one instant, all processes together; PSS counts a shared page once."""

    pss_mib: float
    num_processes: int
    num_threads: int


@contextmanager
def job_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory for one job, gone afterwards.

    Its path is short: the peer puts Unix sockets deep below it.
    """
    path = Path(tempfile.mkdtemp(prefix="hfb-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def become_subreaper() -> None:
    """Makes this process the parent of every orphan below it, so that none escapes the measurement.

    Raises:
        JobError: The system is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise JobError("the benchmarks read /proc and need Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise JobError(f"prctl(PR_SET_CHILD_SUBREAPER) failed: {os.strerror(ctypes.get_errno())}")


def run_job(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout_s: float = 300.0,
    while_running: Callable[[int], None] | None = None,
) -> Usage:
    """Runs a command to its end, and whatever it leaves behind to theirs.

    Args:
        environment: Added to ours.
        while_running: Called with the process's id once it runs.

    Raises:
        JobError: It failed (with the end of its output) or ran too long (and was killed with all below it).
    """
    become_subreaper()
    with tempfile.TemporaryFile() as output:
        begin = time.monotonic()
        child = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        sampler = _CpuSampler()
        try:
            if while_running is not None:
                while_running(child.pid)
            status, cpu_s = _wait(child.pid, begin + timeout_s)
            wall_s = time.monotonic() - begin
        except BaseException:
            _kill_below(os.getpid())
            raise
        finally:
            sampled_s = sampler.stop()
        child.returncode = os.waitstatus_to_exitcode(status)  # reaped here, for its rusage; Popen must not try again
        # The kernel forgets the time of a child whose parent ignores SIGCHLD; samples miss the last moments of each.
        cpu_s = max(cpu_s + _reap_orphans(), sampled_s)
        if child.returncode != 0:
            output.seek(0)
            tail = output.read()[-4000:].decode(errors="replace")
            raise JobError(f"{' '.join(command)} ended with {child.returncode}; its last output:\n{tail}")
    return Usage(wall_s, cpu_s)


def footprint(root: int) -> Footprint:
    """What the process `root` and all below it hold now."""
    pss_kib = num_processes = num_threads = 0
    for pid in _tree(root):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue  # ended between the listing and the look
        pss_kib += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        num_processes += 1
        num_threads += threads
    return Footprint(pss_kib / 1024, num_processes, num_threads)


def cpu_seconds(root: int) -> float:
    """CPU seconds that the process `root` and all below it have used, those that ended included."""
    ticks = 0
    for pid in _tree(root):
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def forget_peaks(root: int) -> None:
    """Lets `peak_mib` of the process `root` and all below it begin anew."""
    for pid in _tree(root):
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            continue  # ended between the listing and this


def peak_mib(root: int) -> float:
    """The most memory that one process, `root` or any below it, has had resident since `forget_peaks`."""
    most_kib = 0
    for pid in _tree(root):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        most_kib = max([most_kib, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))])
    return most_kib / 1024


class _CpuSampler:
    """Sums the CPU time that each process below this one had used when it was last seen."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Ends sampling; CPU seconds."""
        self._ended.set()
        self._thread.join()
        return sum(self._seen.values()) / os.sysconf("SC_CLK_TCK")

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            for pid in _tree(os.getpid())[1:]:  # all that is below us, orphans included
                fields = _stat(pid)
                if fields is not None:
                    self._seen[pid] = int(fields[11]) + int(fields[12])


def _wait(pid: int, deadline: float) -> tuple[int, float]:
    """Status and CPU seconds of a child; its exit is seen by a pidfd, not by polling."""
    import select

    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise JobError(f"process {pid} ran into its time limit")
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime


def _reap_orphans() -> float:
    """CPU seconds of what the job left running, once it has ended by itself or was made to."""
    cpu_s, begin, killed = 0.0, time.monotonic(), False
    while True:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return cpu_s
        if pid:
            cpu_s += usage.ru_utime + usage.ru_stime
        else:
            if not killed and time.monotonic() - begin > _ORPHANS_S:
                _kill_below(os.getpid())
                killed = True
            time.sleep(0.02)


def _kill_below(root: int) -> None:
    for pid in _tree(root):
        if pid != root:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it was quicker


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on, or None if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name, in parentheses, may itself hold spaces and parentheses


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else None
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, ()))
    return found
