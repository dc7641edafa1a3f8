"""The worker's end of the socket to its controller."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from holdfast.errors import DriverLostError
from holdfast.worker import protocol

_CHUNK_BYTES = 1 << 16


class Channel:
    """Questions out, answers in, one at a time; threads of one worker take turns."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._num_unread = 0
        self._turn = threading.Lock()

    def ask(self, question: protocol.Message, meanwhile: Callable[[], None] | None = None) -> protocol.Answer:
        """Sends a question and waits for its answer.

        The wait has no limit of its own: the controller limits it, and its death ends it.

        Args:
            meanwhile: Called once the question is sent; short, for it must not make the answer late.

        Raises:
            DriverLostError: The controller is gone.
        """
        with self._turn:
            self.send(question)
            # An interrupt between the two leaves an answer on its way, which is not the next question's.
            self._num_unread += 1
            while self._num_unread > 1:
                self.receive()
                self._num_unread -= 1
            if meanwhile is not None:
                meanwhile()
            answer = self.receive()
            self._num_unread -= 1
            return answer

    def send(self, message: protocol.Message) -> None:
        """Sends without waiting for an answer."""
        try:
            self._socket.sendall(protocol.frame(message))
        except OSError as error:
            raise DriverLostError(f"the driver of this worker is gone ({error})") from error

    def receive(self) -> protocol.Answer:
        """Waits for the next message of the controller."""
        header = self._take(protocol.HEADER.size)
        body = self._take(protocol.HEADER.unpack(header)[0])
        return protocol.answer_decoder.decode(body)

    def _take(self, size: int) -> bytes:
        buffer = self._buffer
        while len(buffer) < size:
            try:
                data = self._socket.recv(max(_CHUNK_BYTES, size - len(buffer)))
            except OSError as error:
                raise DriverLostError(f"the driver of this worker is gone ({error})") from error
            if not data:
                raise DriverLostError("the driver of this worker is gone")
            buffer += data
        taken = bytes(buffer[:size])
        del buffer[:size]
        return taken

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()
