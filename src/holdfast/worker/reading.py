"""Reading that an interrupt cannot tear."""

from __future__ import annotations

import socket
from collections import deque


def read_into(buffer: bytearray, connection: socket.socket, size: int, flags: int = 0) -> int:
    """Appends what comes to a buffer, `size` bytes at most.

    Python raises what a signal's handler raises between two of its own instructions. Between the two of `data = recv()` the bytes
    would be lost, and with them all that comes later. Here there is none: C code calls `recv` and `extend`.

    Returns:
        How many bytes came; 0 at the end.

    Raises:
        OSError: As `recv` does.
    """
    before = len(buffer)
    deque(map(buffer.extend, map(connection.recv, (size,), (flags,))), maxlen=0)
    return len(buffer) - before
