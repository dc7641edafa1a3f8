from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from holdfast.persistence.right_of_way import as_usual, give_way, never_preempting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has such policies")


def policy() -> int:
    return os.sched_getscheduler(0)


def policy_of_a_child() -> int:
    command = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def in_a_thread(function: object) -> list[int]:
    found: list[int] = []
    thread = threading.Thread(target=function, args=(found,))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    return found


def test_a_thread_preempts_nobody_for_as_long_as_the_block_runs_and_its_processes_are_as_ever() -> None:
    def run(found: list[int]) -> None:
        with never_preempting():
            found.append(policy())
            with as_usual():
                found.append(policy_of_a_child())
            found.append(policy())
        found.append(policy())
        with as_usual():
            found.append(policy())

    usual = os.SCHED_OTHER
    assert in_a_thread(run) == [os.SCHED_BATCH, usual, os.SCHED_BATCH, usual, usual]


def test_a_policy_that_the_user_has_chosen_stays() -> None:
    def run(found: list[int]) -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with never_preempting():
            found.append(policy())
        give_way()
        found.append(policy())

    assert in_a_thread(run) == [os.SCHED_IDLE, os.SCHED_IDLE]


def test_who_gives_way_is_not_heard_of_by_other_threads() -> None:
    before = policy(), os.getpriority(os.PRIO_PROCESS, 0)

    def run(found: list[int]) -> None:
        give_way()
        found.append(policy())
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    assert in_a_thread(run) == [os.SCHED_BATCH, min(before[1] + 5, 19)]
    assert (policy(), os.getpriority(os.PRIO_PROCESS, 0)) == before


def test_a_system_that_refuses_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "setpriority", refuse)
    with never_preempting():
        pass

    def run(found: list[int]) -> None:
        give_way()
        found.append(policy())

    assert in_a_thread(run) == [policy()]
