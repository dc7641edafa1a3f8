"""Training has the right of way on the cores that it shares with what stores its checkpoints."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from holdfast.stores.lone_threads import work_alone

# What runs beside training gets a third of the share of a core that training has, where both want it.
_NICENESS = 5


class _Before(threading.local):
    policy: int | None = None


_before = _Before()


@contextlib.contextmanager
def never_preempting() -> Iterator[None]:
    """While the block runs, this thread takes a core only when that is free, or at the end of another's time on it.

    Linux would often wake a thread on the core of whoever woke it, and in its place: a worker that hands its files over then
    stands still for a millisecond. Threads that are started meanwhile are the same; processes are too, but in `as_usual`. Elsewhere
    nothing happens.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    # sched(7): SCHED_BATCH is what never preempts; any process may choose it, and take it back.
    if not _set_policy(os.SCHED_BATCH):
        yield
        return
    _before.policy = os.SCHED_OTHER
    try:
        yield
    finally:
        _before.policy = None
        _set_policy(os.SCHED_OTHER)


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """A process or thread that is started in the block is as it would be outside of `never_preempting`."""
    policy = _before.policy
    if policy is None:
        yield
        return
    _set_policy(policy)
    try:
        yield
    finally:
        _set_policy(os.SCHED_BATCH)


def give_way() -> None:
    """This thread works beside training from now on: with less of a core, never in the middle of a step, without helpers."""
    work_alone()
    # Linux alone has priorities of threads; those that this one starts take over its own.
    if sys.platform == "linux":
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            _set_policy(os.SCHED_BATCH)
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def _set_policy(policy: int) -> bool:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:  # a sandbox that allows no such call
        return False
    return True
