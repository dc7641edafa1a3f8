"""Which machine this is."""

from __future__ import annotations

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """What tells this machine, until it is started anew, from every other; None where the system does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def machine_id() -> str:
    """The same, or the machine's name where there is nothing better."""
    return boot_id() or os.uname().nodename
