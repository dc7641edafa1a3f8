"""Whether the kernel has killed processes for want of memory: SIGKILL does not say."""

from __future__ import annotations

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_CGROUP = Path("/sys/fs/cgroup/memory.events")


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed so far, machine and control group together; 0 where it does not tell."""
    total = 0
    for source in (_VMSTAT, _CGROUP):
        try:
            lines = source.read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total
