"""The node's end of the sockets for open files."""

from __future__ import annotations

import os
import socket

import pytest

from holdfast.controller.group import Listener
from holdfast.controller.reactor import Reactor
from holdfast.engines.local.files import FileConnections
from holdfast.records import StagedFile, StagedShard
from holdfast.worker import protocol
from holdfast.worker.handover import HandOver


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
    assert told == ["calls", protocol.Files.__name__]


def test_what_a_rank_has_said_is_read_before_its_files_are_given_up(connections, told, hand_over, monkeypatch):
    receive = socket.recv_fds

    def none_left(*arguments):
        data, descriptors, flags, address = receive(*arguments)
        for descriptor in descriptors:
            os.close(descriptor)
        return data, [], flags | socket.MSG_CTRUNC, address

    monkeypatch.setattr(socket, "recv_fds", none_left)
    connections.drain(0)
    assert told == ["calls", protocol.Abandoned.__name__]
