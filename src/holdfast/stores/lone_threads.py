"""Whether what a thread does may take further threads beside it."""

from __future__ import annotations

import threading


class _Alone(threading.local):
    is_set = False


_alone = _Alone()


def work_alone() -> None:
    """This thread starts no others from now on to be faster: cores are for something else."""
    _alone.is_set = True


def may_have_helpers() -> bool:
    """Whether it may."""
    return not _alone.is_set
