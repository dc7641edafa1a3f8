"""Memory that a worker copies its state into, and the node reads: files without a name, used again and again.

The first touch of fresh memory costs many times what the copying does, so a buffer is kept. It lies in a memory file of the
kernel's (`memfd_create(2)`) that vanishes with the last process that holds it: a crash leaves nothing behind. In the
reported directory stands a link to it, `/proc/<worker>/fd/<number>`, which opens like any file.

A buffer is free again when nothing refers to it: its link is gone, and there is no reader. Whoever reads holds a shared
`flock(2)` on it, which the kernel gives up with the reader's last descriptor, however that reader ends. While it is filled
it is locked exclusively.

A link may have been moved or copied elsewhere, so each filling has marks of its own: another descriptor number, so that older
links lead nowhere, and one time of modification on file and link, by which staging and loading tell them from each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import resource
import sys
import time
import uuid
from pathlib import Path

import torch

from holdfast.persistence.memory import available_bytes
from holdfast.torch.state.files import FileLayout
from holdfast.worker.context import WorkerState

_LOG = logging.getLogger("holdfast")
_KEY = "torch.state.buffers"
# The part of the free memory that the buffers of all workers of a node may take.
_MOST_OF_ROOM = 0.8
# Whoever keeps more directories than that gets files: each holds a whole buffer.
_MOST_BUFFERS = 8


def is_possible() -> bool:
    """Whether this system has such files."""
    return sys.platform == "linux" and os.path.isdir("/proc/self/fd")


class Buffer:
    """One memory file, mapped into this process.

    Raises:
        OSError: The system gives none.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("holdfast-state", os.MFD_CLOEXEC)
        os.fchmod(self._descriptor, 0o666 & ~_umask())
        self._map: mmap.mmap | None = None
        self._size_bytes = 0
        self._pinned: int | None = None
        self._link: Path | None = None

    @property
    def size_bytes(self) -> int:
        """Its size, used or not."""
        return self._size_bytes

    def claim(self) -> bool:
        """Locks it where nobody reads it and its link is gone; False where it is in use."""
        if self._link is not None:
            with contextlib.suppress(OSError):  # gone, or something else by now
                if os.readlink(self._link) == self._target:
                    return False
            self._link = None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Ends `claim`: readers may come."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def begin(self, layout: FileLayout, link: Path, number: int, *, pin: bool) -> None:
        """Takes the size of a file, holds its header, and appears at `link`; the caller has claimed it.

        Args:
            number: The descriptor that the link leads to: this or a higher one.
            pin: Make it known to CUDA, whose copies then go straight into it.

        Raises:
            OSError: There is not enough memory.
        """
        old, self._descriptor = self._descriptor, fcntl.fcntl(self._descriptor, fcntl.F_DUPFD_CLOEXEC, number)
        os.close(old)
        if layout.size_bytes != self._size_bytes or self._map is None:
            self._unmap()
            self._size_bytes = 0
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

    def address(self) -> int:
        """Where it begins in this process's memory, until the next `begin`."""
        assert self._map is not None
        return torch.frombuffer(self._map, dtype=torch.uint8).data_ptr()

    @property
    def is_pinned(self) -> bool:
        """Whether CUDA copies into it without waiting."""
        return bool(self._pinned)

    def end(self) -> None:
        """Its content is complete: marks file and link, and lets readers come."""
        assert self._link is not None
        # Writing through a mapping moves no time by itself.
        now_ns = time.time_ns()
        os.utime(self._link, ns=(now_ns, now_ns), follow_symlinks=False)
        # As the directory's file system keeps it: not all keep nanoseconds.
        kept_ns = os.lstat(self._link).st_mtime_ns
        os.utime(self._descriptor, ns=(kept_ns, kept_ns))
        self.release()

    def close(self) -> None:
        """Gives the memory back; what its link still leads to becomes a file. Safe to repeat."""
        with contextlib.suppress(OSError):  # its directory is gone, as nearly always
            if self._link is not None and self._descriptor >= 0 and os.readlink(self._link) == self._target:
                self._write_out(self._link)
        self._unmap()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write_out(self, link: Path) -> None:
        # Beside the saved directory, not in it: another rank may just be reporting that.
        new = link.parents[2] / f".holdfast-{uuid.uuid4().hex}.new"
        try:
            with new.open("wb") as file:
                file.write(self._map or b"")
            os.replace(new, link)
        except OSError as error:
            _LOG.warning("%s is lost, it was in memory and could not be written: %s", link, error)
            new.unlink(missing_ok=True)

    @property
    def _target(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def _unmap(self) -> None:
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)
        self._pinned = None
        if self._map is not None:
            self._map.close()
            self._map = None

    def _pin(self) -> None:
        address = self.address()
        # Refused where the limit of locked memory is low: copies then go through CUDA's own staging.
        failed = int(torch.cuda.cudart().cudaHostRegister(address, self._size_bytes, 0))
        self._pinned = 0 if failed else address


class BufferPool:
    """The buffers of one worker; they are given back when its function ends.

    Args:
        num_sharing: How many workers of this node take their buffers from the same memory.
    """

    def __init__(self, num_sharing: int = 1) -> None:
        self._num_sharing = num_sharing
        self._buffers: list[Buffer] = []
        self._number = 0

    def fill(self, layout: FileLayout, link: Path, *, pin: bool) -> Buffer | None:
        """A buffer that appears at `link` and is to be filled up to its `end`.

        Where possible it is one of that size already. None where there is no memory for one, or too many are in use.
        """
        claimed = [buffer for buffer in self._buffers if buffer.claim()]
        best = min(claimed, key=lambda buffer: abs(buffer.size_bytes - layout.size_bytes), default=None)
        for buffer in claimed:
            if buffer is not best:
                buffer.release()
        try:
            if best is None:
                if len(self._buffers) >= _MOST_BUFFERS or not self._has_room(layout.size_bytes):
                    return None
                best = Buffer()
                self._buffers.append(best)
                best.claim()
            elif not self._has_room(layout.size_bytes - best.size_bytes):
                best.release()
                return None
            best.begin(layout, link, self._next_number(), pin=pin)
            # Of two that are free, the one that was filled first is next: the other may be what a restart begins with.
            self._buffers.remove(best)
            self._buffers.append(best)
        except OSError:  # refused by the system; the file can be written all the same
            if best is not None and best in self._buffers:
                self._buffers.remove(best)
                best.close()
            link.unlink(missing_ok=True)
            return None
        return best

    def close(self) -> None:
        """Gives all memory back that nobody else holds."""
        while self._buffers:
            self._buffers.pop().close()

    def _has_room(self, more_bytes: int) -> bool:
        # Memory that is promised and not there ends in the death of a process, not in an error.
        room_bytes = available_bytes()
        return more_bytes <= 0 or room_bytes is None or more_bytes <= room_bytes * _MOST_OF_ROOM / self._num_sharing

    def _next_number(self) -> int:
        """Descriptor numbers in turn, in the upper half of those that a process may have."""
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16)
        self._number = self._number + 1 if limit // 2 <= self._number < limit - 2 * _MOST_BUFFERS else limit // 2
        return self._number


def pool_of(state: WorkerState) -> BufferPool:
    """The worker's pool, made at its first use."""
    pool = state.resources.get(_KEY)
    if not isinstance(pool, BufferPool):
        pool = state.resources[_KEY] = BufferPool(max(1, state.job.local_world_size))
    return pool


def _umask() -> int:
    """What new files of this process lack; asking the kernel itself would change it for a moment, for all threads."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0o022
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o022)
