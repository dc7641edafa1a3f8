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
    wanted = layout(count)
    buffer = pool.take(wanted.size_bytes)
    buffer.begin(wanted, link, pin=False)
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


def test_a_reader_holds_it_until_its_last_descriptor_is_closed(pool, tmp_path):
    first = begin(pool, tmp_path / "link")
    descriptor = os.open(tmp_path / "link", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    copy = os.dup(descriptor)
    (tmp_path / "link").unlink()
    os.close(descriptor)
    assert not first.is_free()
    os.close(copy)
    assert first.is_free()


def test_it_takes_the_size_of_each_file(pool, tmp_path):
    for count in (1000, 10, 5000):
        buffer = begin(pool, tmp_path / "link", count)
        assert os.stat(tmp_path / "link").st_size == layout(count).size_bytes == buffer.size_bytes
        (tmp_path / "link").unlink()


def test_there_is_none_where_memory_is_short(pool, tmp_path, monkeypatch):
    begin(pool, tmp_path / "link", 1000)
    (tmp_path / "link").unlink()
    monkeypatch.setattr(buffers, "available_bytes", lambda: 1000)
    assert pool.take(layout(1000).size_bytes) is not None  # it has this one
    assert pool.take(layout(2000).size_bytes) is None


def test_files_are_aligned_and_whole():
    pieces = [Piece("odd", (3,), (0,), torch.uint8), Piece("double", (2, 2), (2, 0), torch.float64)]
    made = lay_out(pieces)
    assert len(made.header) % 64 == 0
    assert [piece.name for piece, _ in made.places] == ["double", "odd"]
    assert all(offset % piece.dtype.itemsize == 0 for piece, offset in made.places)
    assert made.size_bytes == len(made.header) + 32 + 3
