"""Buffers: when they are free, and when there is no memory for one."""

from __future__ import annotations

import fcntl
import os
import sys

import pytest
import torch

from holdfast.torch.state import buffers
from holdfast.torch.state.files import Piece, lay_out

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")


def layout(count=1000):
    return lay_out([Piece("t", (count,), (0,), torch.float32)])


@pytest.fixture
def pool():
    pool = buffers.BufferPool()
    yield pool
    pool.close()


def begin(pool, link, count=1000):
    buffer = pool.fill(layout(count), link, pin=False)
    if buffer is not None:
        buffer.end()
    return buffer


def test_a_buffer_is_kept_as_long_as_its_link(pool, tmp_path):
    first = begin(pool, tmp_path / "link")
    assert begin(pool, tmp_path / "other") is not first
    (tmp_path / "link").unlink()
    assert begin(pool, tmp_path / "third") is first


def test_another_save_to_the_same_place_uses_it_again(pool, tmp_path):
    first = begin(pool, tmp_path / "link")
    second = begin(pool, tmp_path / "link")
    assert second is not first  # while the link stood
    assert begin(pool, tmp_path / "another") is first


def test_of_those_that_are_free_the_one_that_was_filled_last_is_used_last(pool, tmp_path):
    """What the newest checkpoint was stored from may be what a restart begins with."""
    first = begin(pool, tmp_path / "link")
    second = begin(pool, tmp_path / "other")
    for number in range(4):
        for name in ("link", "other"):
            (tmp_path / name).unlink(missing_ok=True)
        assert begin(pool, tmp_path / "link") is (first, second)[number % 2]


def test_a_reader_holds_it_until_its_last_descriptor_is_closed(pool, tmp_path):
    first = begin(pool, tmp_path / "link")
    descriptor = os.open(tmp_path / "link", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    copy = os.dup(descriptor)
    (tmp_path / "link").unlink()
    os.close(descriptor)
    assert not first.claim()
    os.close(copy)
    assert first.claim()


def test_it_takes_the_size_of_each_file(pool, tmp_path):
    for count in (1000, 10, 5000):
        buffer = begin(pool, tmp_path / "link", count)
        assert os.stat(tmp_path / "link").st_size == layout(count).size_bytes == buffer.size_bytes
        (tmp_path / "link").unlink()


def test_there_is_none_where_memory_is_short(pool, tmp_path, monkeypatch):
    begin(pool, tmp_path / "link", 1000)
    (tmp_path / "link").unlink()
    monkeypatch.setattr(buffers, "available_bytes", lambda: 1000)
    assert begin(pool, tmp_path / "link", 2000) is None
    assert begin(pool, tmp_path / "link", 1000) is not None  # it has this one
    assert begin(pool, tmp_path / "other", 1000) is None


def test_the_workers_of_a_node_share_the_room(tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "available_bytes", lambda: 8000)
    alone, shared = buffers.BufferPool(), buffers.BufferPool(num_sharing=4)
    assert begin(alone, tmp_path / "a", 1000) is not None
    assert begin(shared, tmp_path / "b", 1000) is None
    alone.close()
    shared.close()


def test_there_is_none_where_the_system_refuses_or_too_many_directories_are_kept(pool, tmp_path, monkeypatch):
    for number in range(20):
        begin(pool, tmp_path / f"{number}", 10)
    assert sum((tmp_path / f"{number}").is_symlink() for number in range(20)) == buffers._MOST_BUFFERS

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert buffers.BufferPool().fill(layout(), tmp_path / "refused", pin=False) is None


def test_an_older_link_leads_nowhere_and_a_reader_waits_for_the_end(pool, tmp_path):
    first = begin(pool, tmp_path / "link")
    os.rename(tmp_path / "link", tmp_path / "moved")
    buffer = pool.fill(layout(), tmp_path / "link", pin=False)
    assert buffer is first
    assert not (tmp_path / "moved").exists()
    descriptor = os.open(tmp_path / "link", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    buffer.end()
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(descriptor)
    assert (tmp_path / "link").lstat().st_mtime_ns == (tmp_path / "link").stat().st_mtime_ns


def test_files_are_aligned_and_whole():
    pieces = [Piece("odd", (3,), (0,), torch.uint8), Piece("double", (2, 2), (2, 0), torch.float64)]
    made = lay_out(pieces)
    assert len(made.header) % 64 == 0
    assert [piece.name for piece, _ in made.places] == ["double", "odd"]
    assert all(offset % piece.dtype.itemsize == 0 for piece, offset in made.places)
    assert made.size_bytes == len(made.header) + 32 + 3
