"""Copies tensors from the CPU's memory into a buffer, at the speed of the memory.

As torch itself copies, with as many threads as torch may use, but all tensors at once: a copy of each alone ends with all threads
waiting for the last of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch

# A few threads are as fast as memory is.
_MOST_THREADS = 16
_CHUNK_BYTES = 8 * 1024 * 1024
# Less is copied before another thread has begun.
_PARALLEL_FROM_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class PlainCopy:
    """Bytes that are copied as they lie: two addresses, and how many."""

    target: int
    source: int
    size_bytes: int


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's bytes are those of its values, one after another, in memory that the CPU reads."""
    # A subclass may keep its values elsewhere, and so may a tensor of nothing but zeros.
    is_ordinary = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"
    return is_ordinary and tensor.is_contiguous() and tensor.data_ptr() != 0


def copy_all(copies: Iterable[PlainCopy]) -> None:
    """Copies; whoever owns the memory keeps it until this returns."""
    chunks: deque[PlainCopy] = deque()
    size_bytes = 0
    for copy in copies:
        size_bytes += copy.size_bytes
        for start in range(0, copy.size_bytes, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, copy.size_bytes - start)
            chunks.append(PlainCopy(copy.target + start, copy.source + start, length))
    count = min(torch.get_num_threads(), _MOST_THREADS, len(chunks)) if size_bytes >= _PARALLEL_FROM_BYTES else 1
    helpers = [
        threading.Thread(target=_copy, args=(chunks,), name="holdfast-copy", daemon=True) for _ in range(count - 1)
    ]
    try:
        with contextlib.suppress(RuntimeError):  # there may be no more threads: this one is enough
            for helper in helpers:
                helper.start()
        _copy(chunks)
    finally:
        chunks.clear()  # where this thread was interrupted
        for helper in helpers:
            if helper.ident is not None:
                helper.join()


def _copy(chunks: deque[PlainCopy]) -> None:
    while True:
        try:
            chunk = chunks.popleft()
        except IndexError:
            return
        ctypes.memmove(chunk.target, chunk.source, chunk.size_bytes)  # without the interpreter's lock
