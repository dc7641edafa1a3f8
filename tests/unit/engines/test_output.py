"""What workers print, on its way to the driver."""

from __future__ import annotations

import os
import threading

from holdfast.engines.local import output
from holdfast.engines.local.output import OutputPump
from holdfast.persistence.logs import Logs
from holdfast.stores import open_store
from support.waiting import LIMIT_S, beside, wait_until


def test_lines_that_lie_in_the_pipes_are_not_lost_where_there_is_no_time_left(tmp_path, monkeypatch):
    """As where a terminal or a disk has been slow; somebody whom a worker left behind holds the pipes open."""
    monkeypatch.setattr(output, "_DRAIN_S", 0.0)
    is_slow, goes_on = threading.Event(), threading.Event()
    lines = []

    def on_line(rank, text, is_stderr):
        lines.append((rank, text, is_stderr))
        is_slow.set()
        assert goes_on.wait(LIMIT_S)

    store = open_store(tmp_path)
    pump = OutputPump(Logs(store), lambda rank: f"rank-{rank}", on_line)
    out, err = pump.add(0)
    pump.start()
    os.write(out, b"first\n")
    assert is_slow.wait(LIMIT_S)
    os.write(out, b"second\nwithout an end")
    with beside(pump.close):
        wait_until(lambda: pump._closing_at is not None, "it is to end")
        goes_on.set()
    os.close(out)
    os.close(err)
    assert lines == [(0, "first", False), (0, "second", False), (0, "without an end", False)]
    assert store.read("rank-0") == b"first\nsecond\nwithout an end\n"
