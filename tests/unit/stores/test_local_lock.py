"""Guarantee 6 stands on this: a lock has one holder, and goes with it however it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.stores.local import LocalStore
from holdfast.stores.local_lock import FileLock, try_lock
from support.drivers import Driver
from support.waiting import LIMIT_S

_HOLDER = """
import sys
from holdfast.stores.local import LocalStore
lock = LocalStore(sys.argv[1]).lock("lock", "the other process")
print("held" if not isinstance(lock, str) else lock, flush=True)
sys.stdin.read()
"""


@contextmanager
def running_holder(root: Path, code: str = _HOLDER, **options: bool) -> Iterator[Driver]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Driver(code, root, stdin=subprocess.PIPE, env=environment, **options) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder


def take(store: LocalStore, description: str = "us") -> FileLock:
    lock = store.lock("lock", description)
    assert isinstance(lock, FileLock)
    return lock


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with running_holder(tmp_path) as holder:
        assert store.lock("lock", "us") == "the other process"
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=LIMIT_S)
        take(store).release()


def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    lock = take(store)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing of the test's may run in here, whatever happens.
        try:
            os.close(go[1])
            os.write(ready[1], b"y" if not lock.is_held else b"n")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"y"
        assert isinstance(store.lock("lock", "again"), str), "the parent holds it still"
        lock.release()
        take(store).release()
    finally:
        for descriptor in (*ready, *go):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_a_child_that_outlives_a_killed_holder_does_not_keep_it(tmp_path: Path) -> None:
    code = _HOLDER.replace(
        "sys.stdin.read()",
        "import os, time\nif os.fork() == 0:\n    os.write(1, b'forked\\n')\n    time.sleep(600)\n    os._exit(0)\nsys.stdin.read()",
    )
    with running_holder(tmp_path, code, start_new_session=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "forked\n"
            holder.kill()
            holder.wait(LIMIT_S)
            take(LocalStore(tmp_path)).release()
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_the_text_of_a_dead_holder_is_not_taken_for_that_of_the_living(tmp_path: Path) -> None:
    with running_holder(tmp_path) as holder:
        holder.kill()
        holder.communicate(timeout=LIMIT_S)
    # Someone who has locked it this instant, and has not come to write his name.
    lock = try_lock(str(tmp_path / "lock"))
    assert lock is not None
    since = time.monotonic()
    assert isinstance(LocalStore(tmp_path).lock("lock", "us"), str)
    assert time.monotonic() - since >= 0.1, "it was given time to write it"
    lock.release()


def test_the_file_tells_the_process_id(tmp_path: Path) -> None:
    with take(LocalStore(tmp_path), "we"):
        assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()}@")


def test_a_lock_file_that_was_removed_and_made_anew_is_another(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = try_lock(path)
    assert first is not None
    os.unlink(path)
    second = try_lock(path)
    assert second is not None
    assert not first.is_at(path)
    assert second.is_at(path)
    first.release()
    second.release()


def test_readers_share_and_shut_out_a_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    readers = [try_lock(path, shared=True) for _ in range(3)]
    assert None not in readers
    assert try_lock(path) is None
    for reader in readers:
        assert reader is not None
        reader.release()
    writer = try_lock(path)
    assert writer is not None
    assert try_lock(path, shared=True) is None
    writer.release()


def test_a_failed_lock_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    from holdfast.errors import StorageError

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="mount it with locking"):
        LocalStore(tmp_path).lock("lock", "us")
