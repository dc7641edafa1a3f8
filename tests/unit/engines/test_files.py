"""The node's end of the sockets for open files."""

from __future__ import annotations

import os
import socket

import pytest

from holdfast.controller.group import Listener
from holdfast.controller.reactor import Reactor
from holdfast.engines.local import files as engine_files
from holdfast.engines.local.files import FileConnections
from holdfast.errors import WorkerDiedError
from holdfast.persistence.staging import stage
from holdfast.records import StagedFile, StagedShard
from holdfast.worker import handover, protocol
from holdfast.worker.handover import HandOver
from support.runs import write_files


@pytest.fixture
def told():
    return []


@pytest.fixture
def connections(told):
    def files(rank, message, descriptors):
        told.append(type(message).__name__)
        for descriptor in descriptors:
            os.close(descriptor)

    reactor = Reactor()
    found = FileConnections(reactor, Listener(told.append, told.append, files), lambda rank: told.append("calls"))
    yield found
    found.close()
    reactor.close()


@pytest.fixture
def hand_over(connections, tmp_path):
    (tmp_path / "f").write_text("x")
    with connections.add(0) as end:
        HandOver(end, 1, StagedShard(rank=0, root=str(tmp_path), files=(StagedFile(path="f", size_bytes=1),))).send()
        yield


def test_what_a_rank_has_said_is_read_before_its_files(connections, told, hand_over):
    connections.drain(0)
    assert told == ["calls", protocol.Files.__name__, protocol.Abandoned.__name__]


def test_what_a_rank_has_said_is_read_before_its_files_are_given_up(connections, told, hand_over, monkeypatch):
    receive = socket.recv_fds

    def none_left(*arguments):
        data, descriptors, flags, address = receive(*arguments)
        for descriptor in descriptors:
            os.close(descriptor)
        return data, [], flags | socket.MSG_CTRUNC, address

    monkeypatch.setattr(socket, "recv_fds", none_left)
    connections.drain(0)
    assert told[:2] == ["calls", protocol.Abandoned.__name__]


def test_what_a_rank_that_has_ended_handed_over_comes_as_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_files, "free_files", lambda: 4)  # of which half are for these
    monkeypatch.setattr(handover, "_PER_MESSAGE", 1)
    write_files(tmp_path, {name: name.encode() for name in "abcde"})
    reactor, come, ends = Reactor(), [], []

    def files(rank, message, descriptors):
        come.extend(descriptors)
        if isinstance(message, protocol.Abandoned):
            ends.append((message.index, message.kind))

    connections = FileConnections(reactor, Listener(lambda *_: None, lambda *_: None, files), lambda _: None)
    with connections.add(0) as end:  # as a process may that the worker has left behind
        HandOver(end, 1, stage(tmp_path, 0)).send()
        connections.drain(0)
        contents, counts = [], []
        while come:
            counts.append(len(come))
            assert not ends or len(contents) + len(come) == 5
            descriptor = come.pop(0)
            contents.append(os.read(descriptor, 9))
            os.close(descriptor)
            connections.closed(1)
            reactor.after(0, lambda: None)
            reactor.step()
        assert contents == [b"a", b"b", b"c", b"d", b"e"]
        assert max(counts) == 2
        assert ends == [(-1, WorkerDiedError.kind)]
    connections.close()
    reactor.close()
