"""Files of SFTP, whose every request waits for the answer to the one before it unless it is told otherwise: 32 KiB a round trip.

Within one call all requests are sent at once, and all answers are waited for before it ends: what comes later would be answered
to the next call, on whatever file, where nobody looks for an error.
"""

from __future__ import annotations

from typing import Any

# What the client writes by one request.
_REQUEST_BYTES = 32 << 10


def write(file: Any, data: bytes) -> None:
    """Writes all of it.

    Raises:
        OSError: The server has refused a part of it.
    """
    view = memoryview(data)
    file.set_pipelined(True)
    file.write(view[:-_REQUEST_BYTES])
    # Without pipelining a request waits for its own answer, and for those to all before it.
    file.set_pipelined(False)
    file.write(view[-_REQUEST_BYTES:])


def write_whole(filesystem: Any, path: str, data: bytes) -> None:
    """Writes a file at its place.

    Raises:
        OSError: The server has refused it, or a part.
    """
    with filesystem.open(path, "wb") as file:
        write(file, data)


def read(filesystem: Any, path: str, start: int, end: int) -> bytes:
    """The bytes of a file from one to another (not included); less where it is shorter."""
    with filesystem.open(path, "rb") as file:
        return b"".join(file.readv([(start, end - start)]))
