"""What kind of file system something lies in, as far as the system tells."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_OF_ONE_MACHINE = _IN_MEMORY | {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay"}
_OF_SERVERS = ("nfs", "fuse", "cifs", "smb", "9p")


def is_in_memory(place: int | str) -> bool:
    """Whether a file or directory lies in a file system that is made of memory; False where the system does not say.

    A file without a name (`memfd_create`) lies in none.

    Raises:
        OSError: There is no such file.
    """
    return _kind(place) in _IN_MEMORY


def is_of_one_machine(place: int | str) -> bool:
    """Whether no other machine sees the same file system, so that its locks are known here; False where that cannot be told.

    Raises:
        OSError: There is no such file.
    """
    return _kind(place) in _OF_ONE_MACHINE


def shows_removed_files(place: int | str) -> bool:
    """Whether a file that is removed while somebody has it open stays under another name, and its directory with it.

    Raises:
        OSError: There is no such file.
    """
    return _kind(place).startswith(_OF_SERVERS)


def _kind(place: int | str) -> str:
    """As `mount` calls it; empty where it is not known (of a part of a btrfs, for one)."""
    device = os.stat(place).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        # "36 35 98:0 /root /mount/point options… - type source …": proc_pid_mountinfo(5).
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0]
    return ""
