"""Files that come open are stored though others are still to come: the node may be able to open these only when it has closed those."""

from __future__ import annotations

import os

import pytest

from holdfast.controller.group import Listener
from holdfast.controller.observer import RunObserver
from holdfast.controller.reactor import Reactor
from holdfast.controller.round import CheckpointRound
from holdfast.engines.local import files as engine_files
from holdfast.engines.local.files import FileConnections
from holdfast.errors import WorkerDiedError
from holdfast.metrics import encode_metrics
from holdfast.persistence.staging import stage
from holdfast.worker import handover, protocol
from holdfast.worker.handover import HandOver
from support.runs import hidden, open_run, visible, write_files
from support.waiting import LIMIT_S

CONTENTS = {"a": b"1", "b": b"22", "c": b"333"}


class Silent(RunObserver):
    pass


class Node:
    """What takes a rank's files and stores them; two may be open at once.

    Attributes:
        num_closed: How many of them were closed.
        ends: What became of the checkpoint.
    """

    def __init__(self, reactor, writer):
        self._reactor = reactor
        self._connections = FileConnections(reactor, Listener(self._take, self._take, self._take), lambda rank: None)
        self.num_closed = 0
        self.ends = []
        self.round = CheckpointRound(
            reactor,
            writer,
            Silent(),
            attempt=1,
            report=1,
            ending=lambda checkpoint, error: self.ends.append(checkpoint or error),
            may_commit=lambda: True,
            files_closed=self._closed,
        )
        self.end = self._connections.add(0)

    def _take(self, rank, message, descriptors):
        self.round.take(rank, message, descriptors)

    def _closed(self, count):
        self.num_closed += count
        self._connections.closed(count)

    def lose(self):
        """The rank's process has ended."""
        self._connections.drain(0)

    def run_until(self, condition):
        late = self._reactor.after(LIMIT_S, lambda: pytest.fail("it waits for what never comes"))
        self._reactor.run_until(condition)
        late.cancel()

    def close(self):
        self._connections.close()
        self.end.close()


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_files, "free_files", lambda: 4)  # of which half are for these
    monkeypatch.setattr(handover, "_PER_MESSAGE", 1)
    reactor, writer = Reactor(), open_run(tmp_path / "run")
    node = Node(reactor, writer)
    yield node
    node.close()
    writer.close()
    reactor.close()


@pytest.fixture
def shard(node, tmp_path):
    write_files(tmp_path / "source", CONTENTS)
    shard = stage(tmp_path / "source", 0)
    node.round.add(0, protocol.ReportCall(1, encode_metrics({}), shard, waits=False))
    return shard


def test_the_last_file_comes_when_the_first_ones_are_stored(node, shard, tmp_path):
    HandOver(node.end, 1, shard).send()
    node.run_until(lambda: node.num_closed == len(CONTENTS))
    node.round.seal(encode_metrics({}), 1, validates=False)
    node.run_until(lambda: node.ends)
    assert {name: (tmp_path / "run/checkpoint_000001" / name).read_bytes() for name in CONTENTS} == CONTENTS


def test_the_first_files_are_stored_though_the_last_never_comes(node, shard, tmp_path):
    descriptor = os.open(tmp_path / "source/a", os.O_RDONLY)
    handover._send(node.end, protocol.Files(1, 0, 1), [descriptor])
    os.close(descriptor)
    node.run_until(lambda: node.num_closed == 1)
    (place,) = [name for name in hidden(tmp_path / "run") if ".partial-" in name]
    assert (tmp_path / "run" / place / "a").read_bytes() == b"1"
    node.lose()
    node.run_until(lambda: node.ends)
    assert isinstance(node.ends[0], WorkerDiedError)
    assert visible(tmp_path / "run") == hidden(tmp_path / "run") == []
