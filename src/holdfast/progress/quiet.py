"""No display: warnings go to the log."""

from __future__ import annotations

import logging

_log = logging.getLogger("holdfast")


class QuietProgress:
    """Shows nothing; what a user must know goes through `logging`."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name

    def started(self, attempt: int, world_size: int, resumed_from: str | None) -> None:
        """See `Progress`."""

    def reported(self, report: int, metrics: bytes) -> None:
        """See `Progress`."""

    def uploading(self, name: str, total_bytes: int) -> None:
        """See `Progress`."""

    def uploaded_bytes(self, n: int) -> None:
        """See `Progress`."""

    def committed(self, name: str, size_bytes: int, seconds: float, score: float | None) -> None:
        """See `Progress`."""

    def worker_line(self, rank: int, text: str, is_stderr: bool) -> None:
        """See `Progress`."""

    def validation_line(self, name: str, text: str, is_stderr: bool) -> None:
        """See `Progress`."""

    def validated(self, name: str, metrics: bytes, seconds: float) -> None:
        """See `Progress`."""

    def message(self, text: str) -> None:
        """See `Progress`."""
        _log.warning("%s: %s", self._run_name, text)

    def failed(self, attempt: int, summary: str, will_restart: bool) -> None:
        """See `Progress`."""
        if will_restart:  # what does not restart is raised
            _log.warning("%s: attempt %d failed and is restarted: %s", self._run_name, attempt, summary)

    def finished(self, summary: str) -> None:
        """See `Progress`."""

    def close(self) -> None:
        """See `Progress`."""
