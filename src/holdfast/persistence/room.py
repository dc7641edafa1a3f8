"""How many bytes may be kept somewhere without anybody missing them."""

from __future__ import annotations

import os

from holdfast.persistence.file_systems import is_in_memory
from holdfast.persistence.memory import available_bytes


def free_bytes(place: int | str) -> int:
    """What can still be written beside a file, or in a directory; where that takes memory, no more than there is.

    Raises:
        OSError: There is no such place.
    """
    there = os.statvfs(place)
    # A file without a name belongs to no file system that has a size.
    sizes = [there.f_bavail * there.f_frsize] if there.f_blocks else []
    if not there.f_blocks or is_in_memory(place):
        memory_bytes = available_bytes()
        sizes += [memory_bytes] if memory_bytes is not None else []
    return min(sizes, default=0)
