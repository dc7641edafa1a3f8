"""Copies one file on this machine, each byte read once and hashed on its way.

What was measured decides the shape (`benchmarks/copy_speed.py`): a buffer that fits into the second-level cache
is copied and hashed about as fast as `cp` copies; reading and hashing in a second thread while this one writes is a
sixth faster than `cp`. A thread costs about 0.1 ms, so only large files get one.

A buffer has the size of those of `cp`, for the kernel allocates the page cache in blocks as large as each write: memory
that other programs' files have just given back comes in blocks of that size. Writing 1 MiB at a time took 0.27 s for
1 GiB into what such writes had freed, but 0.84 s after `cp` (itself 0.39 s), where 128 KiB took 0.33 s in both cases.
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import sys
import threading
from collections.abc import Iterator

from holdfast.stores.base import Hasher
from holdfast.stores.lone_threads import may_have_helpers

_BUFFER_BYTES = 128 * 1024
_PIPELINE_FROM_BYTES = 4 * 1024 * 1024
_PIPELINE_BUFFERS = 8
_ZEROS = memoryview(bytes(1024 * 1024))
_HAS_HOLES = hasattr(os, "SEEK_DATA")
# From here on a copy that shares the source's blocks (XFS, btrfs) is tried; where that cannot be, it costs one call.
_CLONE_FROM_BYTES = 256 * 1024
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


class EndedEarlyError(OSError):
    """The source holds fewer bytes than it should."""


class _Buffers(threading.local):
    """One buffer a thread, kept: allocating it anew for each file would fault its pages in anew."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_BUFFER_BYTES))


_buffers = _Buffers()


def copy_bytes(source: int, target: int, size_bytes: int, hasher: Hasher | None) -> None:
    """Copies the first `size_bytes` of one descriptor to another that is empty; holes stay holes.

    Raises:
        EndedEarlyError: The source is shorter.
        OSError: Reading or writing failed.
    """
    if size_bytes >= _CLONE_FROM_BYTES and _clone(source, target):
        if hasher is not None:
            feed(hasher, source, size_bytes)
        if os.fstat(target).st_size > size_bytes:  # the source has grown meanwhile
            os.ftruncate(target, size_bytes)
        return
    if size_bytes >= _PIPELINE_FROM_BYTES and may_have_helpers():
        _copy_large(source, target, size_bytes, hasher)
        return
    view = _buffers.view
    end = 0
    for start, end, is_hole in segments(source, size_bytes):
        if is_hole:
            feed_zeros(hasher, end - start)
            continue
        offset = start
        while offset < end:
            num_bytes = _read_at(source, view[: min(end - offset, _BUFFER_BYTES)], offset)
            if hasher is not None:
                hasher.update(view[:num_bytes])
            _write_at(target, view[:num_bytes], offset)
            offset += num_bytes
    _extend(target, size_bytes)


def _clone(source: int, target: int) -> bool:
    """Whether the target now shares all of the source's blocks; the kernel copies what is written to either later."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # another file system, or one that cannot
        return False
    return True


def feed(hasher: Hasher, source: int, size_bytes: int) -> None:
    """Feeds the first `size_bytes` of an open file to the hasher, each byte read once.

    Raises:
        EndedEarlyError: The file is shorter.
        OSError: It cannot be read.
    """
    view = _buffers.view
    for start, end, is_hole in segments(source, size_bytes):
        if is_hole:
            feed_zeros(hasher, end - start)
            continue
        offset = start
        while offset < end:
            num_bytes = _read_at(source, view[: min(end - offset, _BUFFER_BYTES)], offset)
            hasher.update(view[:num_bytes])
            offset += num_bytes


def segments(source: int, size_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """`(start, end, is_hole)` for the parts of a file, in order and without gaps.

    A file that fits into a buffer is taken as data: looking for holes would cost more than reading it.
    """
    if size_bytes == 0:
        return
    if size_bytes <= _BUFFER_BYTES or not _HAS_HOLES or os.fstat(source).st_blocks * 512 >= size_bytes:
        yield 0, size_bytes, False
        return
    offset = 0
    while offset < size_bytes:
        data = _seek(source, offset, os.SEEK_DATA, size_bytes)
        if data > offset:
            yield offset, data, True
        if data >= size_bytes:
            return
        offset = _seek(source, data, os.SEEK_HOLE, size_bytes)
        yield data, offset, False


def feed_zeros(hasher: Hasher | None, num_bytes: int) -> None:
    """Feeds a hole to the hasher as what it reads as."""
    if hasher is None:
        return
    while num_bytes > 0:
        chunk = _ZEROS[: min(num_bytes, len(_ZEROS))]
        hasher.update(chunk)
        num_bytes -= len(chunk)


def _seek(source: int, offset: int, whence: int, size_bytes: int) -> int:
    try:
        return min(os.lseek(source, offset, whence), size_bytes)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end, if that is where it should be
            if (ends_at := os.fstat(source).st_size) < size_bytes:
                raise ended_early(ends_at) from error
            return size_bytes
        if error.errno in (errno.EINVAL, errno.ENOTSUP):  # a file system without holes: all is data
            return offset if whence == os.SEEK_DATA else size_bytes
        raise


def _read_at(source: int, view: memoryview, offset: int) -> int:
    num_bytes = os.preadv(source, [view], offset)
    if num_bytes == 0:
        raise ended_early(offset)
    return num_bytes


def read_exactly(source: int, offset: int, num_bytes: int) -> bytes:
    """So many bytes of an open file, from an offset.

    Raises:
        OSError: The file ends before.
    """
    data = os.pread(source, num_bytes, offset)
    if len(data) == num_bytes:
        return data
    # One call of the kernel need not give all; no more at all is the end.
    chunks = [data]
    read_bytes = len(data)
    while read_bytes < num_bytes:
        if not chunks[-1]:
            raise ended_early(offset + read_bytes)
        chunks.append(os.pread(source, num_bytes - read_bytes, offset + read_bytes))
        read_bytes += len(chunks[-1])
    return b"".join(chunks)


def ended_early(num_bytes: int) -> EndedEarlyError:
    """The error for a file that ends after `num_bytes`, and should not."""
    return EndedEarlyError(errno.ENODATA, f"the file ended after {num_bytes} bytes, and should hold more")


def _write_at(target: int, view: memoryview, offset: int) -> None:
    written = os.pwrite(target, view, offset)
    # A disk that is about to be full takes a part and refuses the rest only at the next call.
    while written < len(view):
        written += os.pwrite(target, view[written:], offset + written)


def _extend(target: int, size_bytes: int) -> None:
    # Only a hole at the end leaves the target short; what is neither data nor hole cannot be.
    if size_bytes > _BUFFER_BYTES and os.fstat(target).st_size < size_bytes:
        os.ftruncate(target, size_bytes)


class _Reader(threading.Thread):
    """Reads and hashes ahead of the thread that writes."""

    def __init__(self, source: int, size_bytes: int, hasher: Hasher | None) -> None:
        super().__init__(name="holdfast-read", daemon=True)
        self._source = source
        self._size_bytes = size_bytes
        self._hasher = hasher
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, memoryview, memoryview] | None] = queue.SimpleQueue()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._read_all()
        except BaseException as error:  # noqa: BLE001 - carried to the writing thread, which raises it
            self.error = error
        finally:
            self._full.put(None)

    def _read_all(self) -> None:
        unused = _PIPELINE_BUFFERS
        for start, end, is_hole in segments(self._source, self._size_bytes):
            if is_hole:
                feed_zeros(self._hasher, end - start)
                continue
            offset = start
            while offset < end:
                if unused:
                    unused -= 1
                    buffer: memoryview | None = memoryview(bytearray(_BUFFER_BYTES))
                else:
                    buffer = self._free.get()
                if buffer is None:
                    return
                num_bytes = _read_at(self._source, buffer[: min(end - offset, len(buffer))], offset)
                filled = buffer[:num_bytes]
                if self._hasher is not None:
                    self._hasher.update(filled)
                self._full.put((offset, filled, buffer))
                offset += num_bytes

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """`(offset, bytes)` in order; the bytes are valid until the next one is asked for."""
        while (item := self._full.get()) is not None:
            offset, filled, buffer = item
            yield offset, filled
            self._free.put(buffer)
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Waits until the thread has let go of the source."""
        self._free.put(None)
        self.join()


def _copy_large(source: int, target: int, size_bytes: int, hasher: Hasher | None) -> None:
    reader = _Reader(source, size_bytes, hasher)
    reader.start()
    try:
        for offset, filled in reader.chunks():
            _write_at(target, filled, offset)
    finally:
        reader.stop()
    _extend(target, size_bytes)
