"""Which files this process has open."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def num_open_below(directory: Path) -> int:
    """How many descriptors lead to files below a directory, those that have lost their name there among them.

    Not all that the process has: connections of earlier tests, say, are closed at any time.
    """
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(link.startswith(f"{directory}/") for link in found)
