"""Memory that a worker copies its state into, and the node reads: files without a name, used again and again.

The first touch of fresh memory costs many times what the copying does, so a buffer is kept. It lies in a memory file of the
kernel's (`memfd_create(2)`) that vanishes with the last process that holds it: a crash leaves nothing behind. In the
reported directory stands a link to it, `/proc/<worker>/fd/<number>`, which opens like any file.

A buffer is free again when nothing refers to it: no link in a directory, and no reader. Whoever reads holds a shared
`flock(2)` on it, which the kernel gives up with the reader's last descriptor, however that reader ends.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from pathlib import Path

import torch

from holdfast.torch.state.files import FileLayout
from holdfast.torch.state.room import available_bytes
from holdfast.worker.context import WorkerState

_KEY = "torch.state.buffers"
# The part of the free memory that a buffer may take.
_MOST_OF_ROOM = 0.8


def is_possible() -> bool:
    """Whether this system has such files."""
    return sys.platform == "linux" and os.path.isdir("/proc/self/fd")


class Buffer:
    """One memory file, mapped into this process."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("holdfast-state", os.MFD_CLOEXEC)
        self._map: mmap.mmap | None = None
        self._size_bytes = 0
        self._pinned: int | None = None
        self._link: Path | None = None
        self._target = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @property
    def size_bytes(self) -> int:
        """Its size, used or not."""
        return self._size_bytes

    def is_free(self) -> bool:
        """Whether nobody reads it, or could find it."""
        if self._link is not None:
            try:
                if os.readlink(self._link) == self._target:
                    return False
            except OSError:  # gone, or something else by now
                self._link = None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return True

    def begin(self, layout: FileLayout, link: Path, *, pin: bool) -> None:
        """Takes the size of a file, holds its header, and appears at `link`.

        Args:
            pin: Make it known to CUDA, whose copies then go straight into it.
        """
        if layout.size_bytes != self._size_bytes or self._map is None:
            self._unmap()
            # Pages that the file had and keeps stay as they are: touched.
            os.ftruncate(self._descriptor, layout.size_bytes)
            self._map = mmap.mmap(self._descriptor, layout.size_bytes)
            self._size_bytes = layout.size_bytes
        if pin and self._pinned is None:
            self._pin()
        self._map[: len(layout.header)] = layout.header
        link.unlink(missing_ok=True)
        link.symlink_to(self._target)
        self._link = link

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        """A part of it as a tensor, which must be gone before the next `begin`."""
        assert self._map is not None
        count = 1
        for length in shape:
            count *= length
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    @property
    def is_pinned(self) -> bool:
        """Whether CUDA copies into it without waiting."""
        return bool(self._pinned)

    def end(self) -> None:
        """Its content is complete: a reader of what it held before sees by its time stamp that it is another's."""
        os.utime(self._descriptor)

    def close(self) -> None:
        """Gives the memory back; safe to repeat."""
        self._unmap()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _unmap(self) -> None:
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)
        self._pinned = None
        if self._map is not None:
            self._map.close()
            self._map = None

    def _pin(self) -> None:
        assert self._map is not None
        address = torch.frombuffer(self._map, dtype=torch.uint8).data_ptr()
        # Refused where the limit of locked memory is low: copies then go through CUDA's own staging.
        failed = int(torch.cuda.cudart().cudaHostRegister(address, self._size_bytes, 0))
        self._pinned = 0 if failed else address


class BufferPool:
    """The buffers of one worker; they are given back when its function ends."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []

    def take(self, size_bytes: int) -> Buffer | None:
        """A free buffer, if possible one of that size already; else a new one; None where memory is too short for it."""
        free = [buffer for buffer in self._buffers if buffer.is_free()]
        best = min(free, key=lambda buffer: abs(buffer.size_bytes - size_bytes), default=None)
        room_bytes = available_bytes()
        # Memory that is promised and not there ends in the death of a process, not in an error.
        more_bytes = size_bytes - (best.size_bytes if best is not None else 0)
        if more_bytes > 0 and room_bytes is not None and more_bytes > room_bytes * _MOST_OF_ROOM:
            return None
        if best is None:
            best = Buffer()
            self._buffers.append(best)
        return best

    def close(self) -> None:
        """Gives all memory back that nobody else holds."""
        while self._buffers:
            self._buffers.pop().close()


def pool_of(state: WorkerState) -> BufferPool:
    """The worker's pool, made at its first use."""
    pool = state.resources.get(_KEY)
    if not isinstance(pool, BufferPool):
        pool = state.resources[_KEY] = BufferPool()
    return pool
