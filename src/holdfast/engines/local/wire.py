"""What the driver and its zygote say to each other: frames over a Unix socket, descriptors beside them."""

from __future__ import annotations

import array
import socket
import struct
from typing import Final

import msgspec

_HEADER: Final = struct.Struct("<I")
_MAX_DESCRIPTORS: Final = 8


class ZygoteMessage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages."""


class Preload(ZygoteMessage, frozen=True):
    """Driver: import these modules once, before the next fork."""

    modules: list[str]


class Spawn(ZygoteMessage, frozen=True):
    """Driver: start a worker. Its four descriptors come with the frame: two sockets, stdout, stderr.

    Attributes:
        token: Names the worker in later messages.
        fork: Fork the zygote; else start a fresh interpreter.
    """

    token: int
    fork: bool


class Signal(ZygoteMessage, frozen=True):
    """Driver: send a signal to a worker, or to all that it has started as well (its process group)."""

    token: int
    signum: int
    group: bool


class Preloaded(ZygoteMessage, frozen=True):
    """Zygote: the modules are there.

    Attributes:
        failed: Modules that could not be imported, with the reason; workers will meet the error themselves.
        can_fork: Whether a fork is safe (one thread, no GPU in use).
        reason: Why not.
    """

    failed: dict[str, str]
    can_fork: bool
    reason: str


class Exited(ZygoteMessage, frozen=True):
    """Zygote: a worker has ended; `code` is the exit code or minus the signal's number."""

    token: int
    code: int


class NotStarted(ZygoteMessage, frozen=True):
    """Zygote: a worker could not be started."""

    token: int
    reason: str


ToZygote = Preload | Spawn | Signal
ToDriver = Preloaded | Exited | NotStarted

_encoder = msgspec.msgpack.Encoder()
_to_zygote: msgspec.msgpack.Decoder[ToZygote] = msgspec.msgpack.Decoder(ToZygote)
_to_driver: msgspec.msgpack.Decoder[ToDriver] = msgspec.msgpack.Decoder(ToDriver)


def send(connection: socket.socket, message: ZygoteMessage, descriptors: tuple[int, ...] = ()) -> None:
    """Sends a message; the descriptors travel with its header and stay open here."""
    body = _encoder.encode(message)
    header = _HEADER.pack(len(body))
    if descriptors:
        packed = array.array("i", descriptors)
        connection.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
    else:
        connection.sendall(header)
    connection.sendall(body)


def receive_in_zygote(connection: socket.socket) -> tuple[ToZygote, list[int]] | None:
    """Waits for the driver's next message and its descriptors; None once the driver is gone."""
    frame = _receive(connection)
    if frame is None:
        return None
    return _to_zygote.decode(frame[0]), frame[1]


def receive_in_driver(connection: socket.socket) -> ToDriver | None:
    """Waits for the zygote's next message; None once it is gone."""
    frame = _receive(connection)
    return None if frame is None else _to_driver.decode(frame[0])


def _receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    descriptors: list[int] = []
    header = b""
    while len(header) < _HEADER.size:
        # The header is read alone: descriptors belong to the bytes they were sent with.
        data, extra, _, _ = socket.recv_fds(connection, _HEADER.size - len(header), _MAX_DESCRIPTORS)
        descriptors += extra
        if not data:
            return None
        header += data
    size = _HEADER.unpack(header)[0]
    body = b""
    while len(body) < size:
        data = connection.recv(size - len(body))
        if not data:
            return None
        body += data
    return body, descriptors
