"""How much memory this process may still take, as far as the system tells."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# Control groups of version 2 and of version 1, as a container sees its own; the limit, and what is in use.
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_bytes() -> int | None:
    """Bytes that can be taken before something else has to go; None where the system does not say."""
    found = [_free_in_machine()] + [_free_in_group(limit, used) for limit, used in _GROUPS]
    return min((each for each in found if each is not None), default=None)


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
