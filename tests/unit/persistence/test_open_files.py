"""The limit of open files, raised while it is needed."""

from __future__ import annotations

import resource

import pytest

from holdfast.persistence.open_files import RaisedLimit, most_open_files


@pytest.fixture
def low(monkeypatch):
    # Another test of this process may have left a hand-over that nobody has closed.
    monkeypatch.setattr(RaisedLimit, "_in_force", 0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = (min(most_open_files(), 4096) - 1, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, low)
    yield low
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_comes_back_with_the_end_of_the_last(low):
    first, second = RaisedLimit(), RaisedLimit()
    first.restore()
    first.restore()
    assert most_open_files() > low[0]
    second.restore()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == low


def test_a_limit_that_the_program_has_set_meanwhile_stays(low):
    raised = RaisedLimit()
    own = (low[0] - 1, low[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, own)
    raised.restore()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == own
