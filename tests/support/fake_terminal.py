"""A pseudo-terminal whose other end is read by a thread, for displays that want a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
import threading
from typing import TextIO

from support.waiting import LIMIT_S


class FakeTerminal:
    """`stream` is the terminal; `text()` what a program wrote to it, escapes included."""

    def __init__(self, columns: int = 200) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self._received = b""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        with self._changed:
            return self._received.decode(errors="replace")

    def wait_for(self, wanted: str, timeout_s: float = LIMIT_S) -> str:
        """The text once it holds `wanted` (escapes of colour left out)."""
        with self._changed:
            found = self._changed.wait_for(lambda: wanted in self._plain(), timeout_s)
            assert found, f"{wanted!r} never came; the terminal holds {self._received!r}"
            return self._plain()

    def close(self) -> None:
        """Hangs up, once all that was written is received; safe to repeat."""
        if not self.stream.closed:
            self.stream.close()
            self._thread.join(LIMIT_S)
            os.close(self._master)

    def _plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._received.decode(errors="replace"))

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux: the last one to hold the other end has closed it
                return
            if not data:
                return
            with self._changed:
                self._received += data
                self._changed.notify_all()
