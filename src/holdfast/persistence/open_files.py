"""How many files this program may have open at once."""

from __future__ import annotations

import os
import resource

# Enough for the checkpoints of most.
_WANTED = 65536
_DESCRIPTORS = "/dev/fd"


class RaisedLimit:
    """Lets this program open more files until `restore`; what the system does not allow, it may not.

    Such limits may be nested: each is restored to what it was before.
    """

    def __init__(self) -> None:
        soft, hard = self._earlier = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):  # macOS refuses what its kernel does not allow
                return

    def restore(self) -> None:
        """Sets the limit to what it was."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._earlier)


def most_open_files() -> int:
    """How many files may be open now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _WANTED if soft == resource.RLIM_INFINITY else soft


def free_files() -> int:
    """How many more may be opened now."""
    try:
        num_open = len(os.listdir(_DESCRIPTORS))
    except FileNotFoundError:  # a container that lacks it
        num_open = 0
    except OSError:  # not even this one
        return 0
    return max(0, most_open_files() - num_open)
