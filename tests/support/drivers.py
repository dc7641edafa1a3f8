"""Scripts as processes of their own, most of them drivers that a test interrupts or kills; none outlives its test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.waiting import LIMIT_S, wait_until


class Driver(subprocess.Popen[str]):
    """A running script. As a context manager it ends with the block: killed, reaped, its pipes closed.

    What it prints is in a pipe, whose end comes when all that it started has ended, too. What it says on stderr can be read
    meanwhile, and is shown with the test.
    """

    def __init__(self, script: str | Path, *arguments: object, **options: Any) -> None:
        """Starts it.

        Args:
            script: Its text, or where it is.
            options: Of `Popen`.
        """
        program = ["-c", script] if isinstance(script, str) else [str(script)]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        super().__init__(
            [sys.executable, *program, *map(str, arguments)],
            **{"stdout": subprocess.PIPE, "stderr": self._said, "text": True, **options},
        )

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)
        sys.stderr.write(self.said())
        self._said.close()

    def said(self) -> str:
        """Its stderr so far."""
        # Not by `read`: the file's position is the process's, too, and it writes there.
        return os.pread(self._said.fileno(), os.fstat(self._said.fileno()).st_size, 0).decode(errors="replace")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """As the function of that name; a driver that has ended is not waited for, and what it said is shown."""

        def holds() -> bool:
            has_ended = self.poll() is not None  # asked first, for it may do what is waited for and end
            if condition():
                return True
            if has_ended:
                printed = self.communicate(timeout=LIMIT_S)[0]
                raise AssertionError(f"it ended with {self.returncode} before this: {what}\n{printed}{self.said()}")
            return False

        wait_until(holds, what)

    def await_file(self, *paths: Path) -> None:
        """Returns when it, or what it started, has made these files."""
        for path in paths:
            self.wait_until(path.exists, f"{path} is there")

    def await_words(self, words: str) -> None:
        """Returns when it has said this on stderr."""
        self.wait_until(lambda: words in self.said(), f"it has said {words!r}")
