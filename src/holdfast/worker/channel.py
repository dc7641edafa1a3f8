"""The worker's end of the socket to its controller."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable

from holdfast.errors import DriverLostError
from holdfast.worker import protocol

_CHUNK_BYTES = 1 << 16


class Asked:
    """A question that is on its way to the controller.

    Attributes:
        answer: None until it has come.
    """

    def __init__(self) -> None:
        self.answer: protocol.Answer | None = None


class Channel:
    """Questions out, answers in; threads of one worker take turns."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        # Whose answers are on their way, in that order. An interrupt leaves one that nobody waits for.
        self._unanswered: deque[Asked] = deque()
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
            asked = self._begin(question)
            if meanwhile is not None:
                meanwhile()
            return self._await(asked)

    def ask_ahead(self, question: protocol.Message) -> Asked:
        """Sends a question that the controller answers at once, and does not wait for it; see `answer_to`.

        Raises:
            DriverLostError: The controller is gone.
        """
        with self._turn:
            return self._begin(question)

    def answer_to(self, asked: Asked) -> protocol.Answer:
        """Waits for the answer to a question that was asked ahead.

        Raises:
            DriverLostError: The controller is gone.
        """
        with self._turn:
            return self._await(asked)

    def _begin(self, question: protocol.Message) -> Asked:
        self.send(question)
        asked = Asked()
        self._unanswered.append(asked)
        return asked

    def _await(self, asked: Asked) -> protocol.Answer:
        while asked.answer is None:
            answer = self.receive()
            self._unanswered.popleft().answer = answer
        return asked.answer

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
