"""The worker's end of the socket to its controller."""

from __future__ import annotations

import functools
import itertools
import operator
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.errors import DriverLostError
from holdfast.worker import protocol
from holdfast.worker.reading import read_into

_CHUNK_BYTES = 1 << 16


class Asked:
    """A call whose answer is on its way.

    Attributes:
        answer: None until it has come.
    """

    def __init__(self) -> None:
        self.answer: protocol.Answer | None = None


class _Sending:
    """A frame that another thread sends: all of it, or, where the one that waits is interrupted before that has begun, nothing.

    Attributes:
        done: Set once nothing more of it will be sent.
        error: Why it was not sent.
    """

    def __init__(self, send: Callable[[], None]) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._send = send
        # Taken by who comes first, and kept. A thread that has been started may begin at any later time.
        self._turn = threading.Lock()

    def run(self) -> None:
        """Sends, in the other thread."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            self._send()
        except BaseException as error:  # noqa: BLE001 - it is for who waits
            self.error = error
        finally:
            self.done.set()

    def settle(self) -> None:
        """Waits for the end of what has begun; what has not, will not."""
        if not self._turn.acquire(blocking=False):
            self.done.wait()


class Channel:
    """Calls out, answers in; threads of one worker take turns to wait.

    An answer belongs to the call of its number. Wherever an interrupt ends a call, its answer is not taken for another's.

    Attributes:
        num_reports: How many reports were sent: as many as the controller has heard of, or will, wherever an interrupt ends one.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._numbers = itertools.count(1)
        self._asked: weakref.WeakValueDictionary[int, Asked] = weakref.WeakValueDictionary()
        self._turn = threading.Lock()
        self._sending = threading.Lock()
        self.num_reports = 0

    def ask(self, call: protocol.Call, meanwhile: Callable[[], None] | None = None) -> protocol.Answer:
        """Sends a call and waits for its answer.

        The wait has no limit of its own: the controller limits it, and its death ends it.

        Args:
            meanwhile: Called once the call is sent; short, for it must not make the answer late.

        Raises:
            DriverLostError: The controller is gone.
        """
        with self._turn:
            asked = self.ask_ahead(call)
            if meanwhile is not None:
                meanwhile()
            return self._await(asked)

    def ask_ahead(self, call: protocol.Call) -> Asked:
        """Sends a call that is answered soon, and does not wait for that; see `answer_to`.

        Raises:
            DriverLostError: The controller is gone.
        """
        asked, number = Asked(), next(self._numbers)
        self._asked[number] = asked
        self.send(msgspec.structs.replace(call, number=number))
        return asked

    def answer_to(self, asked: Asked) -> protocol.Answer:
        """Waits for the answer to a call that was made by `ask_ahead`.

        Raises:
            DriverLostError: The controller is gone.
        """
        if asked.answer is not None:
            return asked.answer
        with self._turn:
            return self._await(asked)

    def send(self, message: protocol.Message) -> None:
        """Sends without waiting for an answer.

        Raises:
            DriverLostError: The controller is gone.
        """
        frame, is_report = protocol.frame(message), isinstance(message, protocol.ReportCall)
        if len(frame) <= _CHUNK_BYTES or threading.current_thread() is not threading.main_thread():
            self._send(frame, is_report)
            return

        # It may go in pieces, and an interrupt between two of them, which Python raises in the main thread alone, would leave half a frame.
        def send() -> None:
            # Before: no interrupt reaches the other thread, and the one that waits for it may go on without its end.
            self.num_reports += is_report
            self._send(frame, is_report=False)

        sending = _Sending(send)
        sender = threading.Thread(target=sending.run, name="holdfast-send", daemon=True)
        try:
            sender.start()
            sender.join()
        finally:
            sending.settle()
        if sending.error is not None:
            raise sending.error

    def receive(self) -> protocol.Answer:
        """Waits for the next message of the controller, whatever its number."""
        return self._receive()

    def _send(self, frame: bytes, is_report: bool) -> None:
        try:
            with self._sending:
                # C code calls both: an interrupt comes before them or after. `sendall` would look for one once all is sent.
                send = functools.partial(self._socket.send, frame)
                count = functools.partial(setattr, self, "num_reports", self.num_reports + is_report)
                steps: list[Callable[[], Any]] = [send, count]
                sent, _ = map(operator.call, steps)
                if sent < len(frame):
                    self._socket.sendall(memoryview(frame)[sent:])
        except OSError as error:
            raise DriverLostError(f"the driver of this worker is gone ({error})") from error

    def _await(self, asked: Asked) -> protocol.Answer:
        while asked.answer is None:
            self._receive()
        return asked.answer

    def _receive(self) -> protocol.Answer:
        buffer, head = self._buffer, protocol.ANSWER_HEADER.size
        self._fill(head)
        length, number = protocol.ANSWER_HEADER.unpack_from(buffer)
        self._fill(head + length)
        answer = protocol.answer_decoder.decode(bytes(buffer[head : head + length]))
        asked = self._asked.get(number)
        if asked is not None:
            asked.answer = answer
        # Last, and at once: an interrupt before it leaves an answer to be read again, and never half of one, or one that nobody got.
        del buffer[: head + length]
        return answer

    def _fill(self, size: int) -> None:
        buffer = self._buffer
        while len(buffer) < size:
            try:
                count = read_into(buffer, self._socket, max(_CHUNK_BYTES, size - len(buffer)))
            except OSError as error:
                raise DriverLostError(f"the driver of this worker is gone ({error})") from error
            if not count:
                raise DriverLostError("the driver of this worker is gone")

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()
