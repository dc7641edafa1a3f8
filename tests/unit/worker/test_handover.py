"""A worker that may open few more files than it has hands over as many as it can, and goes on with the rest."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from holdfast.persistence.open_files import RaisedLimit
from holdfast.persistence.staging import stage
from holdfast.worker import handover
from holdfast.worker.handover import HandOver, Receiver
from support.runs import write_files

FILES = {f"file-{number:02}": bytes([number]) for number in range(40)}


def in_child(function):
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os.write(2, b"the hand-over failed\n")
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def limit_to(soft, hard):
    """Of files that may be opened beside those that are open."""
    most = max(int(name) for name in os.listdir("/dev/fd")) + 1
    for number in range(most):  # whatever lies below is taken, too
        try:
            os.fstat(number)
        except OSError:
            os.dup2(0, number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + soft, most + hard))


@pytest.mark.parametrize(
    ("soft", "hard", "seen"),
    [pytest.param(3, 3, 100, id="fewer than it seemed"), pytest.param(3, 3, None), pytest.param(0, 100, None)],
)
def test_few_files_that_may_be_opened_are_handed_over_in_parts(tmp_path, monkeypatch, soft, hard, seen):
    # Another test of this process may have left a hand-over that nobody has closed.
    monkeypatch.setattr(RaisedLimit, "_in_force", 0)
    if seen is not None:  # before another thread opened some
        monkeypatch.setattr(handover, "free_files", lambda: seen)
    write_files(tmp_path, FILES)
    shard = stage(tmp_path, 0)
    ours, theirs = socket.socketpair()

    def send():
        limit_to(soft, hard)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        HandOver(theirs, 1, shard).send()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

    with ours, theirs:
        in_child(send)
        ours.setblocking(False)
        receiver, contents = Receiver(ours), []
        while found := list(receiver.receive()):
            for message, descriptors in found:
                assert message.first == len(contents)
                for descriptor in descriptors:
                    contents.append(os.read(descriptor, 9))
                    os.close(descriptor)
    assert contents == list(FILES.values())
