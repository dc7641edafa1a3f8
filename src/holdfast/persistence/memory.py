"""How much memory this process may still take, and which files lie in it, as far as the system tells."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_MOUNTS = Path("/proc/self/mountinfo")
# Control groups of version 2 and of version 1, as a container sees its own; the limit, and what is in use.
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def available_bytes() -> int | None:
    """Bytes that can be taken before something else has to go; None where the system does not say."""
    found = [_free_in_machine()] + [_free_in_group(limit, used) for limit, used in _GROUPS]
    return min((each for each in found if each is not None), default=None)


def is_in_memory(place: int | str) -> bool:
    """Whether a file or directory lies in a file system that is made of memory; False where the system does not say.

    A file without a name (`memfd_create`) lies in none.

    Raises:
        OSError: There is no such file.
    """
    device = os.stat(place).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    for line in lines:
        # "36 35 98:0 /root /mount/point options… - type source …": proc_pid_mountinfo(5).
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0] in _IN_MEMORY
    return False


def _free_in_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _free_in_group(limit: Path, used: Path) -> int | None:
    # What is in use counts pages of files, too, which the kernel would give up; so this errs on the safe side.
    try:
        return max(0, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such group, or one without a limit ("max")
        return None
