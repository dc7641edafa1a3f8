"""How many files this program may have open at once."""

from __future__ import annotations

import os
import resource
import threading

# Enough for the checkpoints of most.
_WANTED = 65536
_DESCRIPTORS = "/dev/fd"


class RaisedLimit:
    """Lets this program open more files until `restore`; what the system does not allow, it may not.

    Several may be in force, in any order: what the limit was comes back with the end of the last.
    """

    _guard = threading.Lock()
    _in_force = 0
    _earlier = _raised = (0, 0)

    def __init__(self) -> None:
        cls = RaisedLimit
        with cls._guard:
            if not cls._in_force:
                cls._earlier, cls._raised = _raise()
            cls._in_force += 1
        self._is_over = False

    def restore(self) -> None:
        """Ends it; safe to repeat. What somebody else has set meanwhile stays."""
        cls = RaisedLimit
        with cls._guard:
            if self._is_over:
                return
            self._is_over = True
            cls._in_force -= 1
            if not cls._in_force and resource.getrlimit(resource.RLIMIT_NOFILE) == cls._raised:
                resource.setrlimit(resource.RLIMIT_NOFILE, cls._earlier)


def _raise() -> tuple[tuple[int, int], tuple[int, int]]:
    """Raises the limit as far as it may be; what it was, and is."""
    soft, hard = earlier = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS refuses what its kernel does not allow
            return earlier, earlier
        return earlier, (wanted, hard)
    return earlier, earlier


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
