"""What the controller tells a display."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A display of one `fit()`.

    The control loop calls it, also from several threads. No call raises, waits for a terminal, or costs more than a
    few microseconds; whatever is slow happens in a thread of the display's own.
    """

    def started(self, attempt: int, world_size: int, resumed_from: str | None) -> None:
        """An attempt's workers run; `resumed_from` names the checkpoint that they start at."""

    def reported(self, report: int, metrics: bytes) -> None:
        """A report is complete; `metrics` is stored JSON, decoded only if it is shown."""

    def uploading(self, name: str, total_bytes: int) -> None:
        """A checkpoint begins to be written."""

    def uploaded_bytes(self, n: int) -> None:
        """That many more bytes of it are written."""

    def committed(self, name: str, size_bytes: int, seconds: float, score: float | None) -> None:
        """A checkpoint exists."""

    def worker_line(self, rank: int, text: str, is_stderr: bool) -> None:
        """A worker printed a line."""

    def validation_line(self, name: str, text: str, is_stderr: bool) -> None:
        """The validation of a checkpoint printed a line, or a few."""

    def validated(self, name: str, metrics: bytes, seconds: float) -> None:
        """A checkpoint was validated; what was found as stored JSON."""

    def message(self, text: str) -> None:
        """Something that the user should know, now."""

    def failed(self, attempt: int, summary: str, will_restart: bool) -> None:
        """An attempt failed."""

    def finished(self, summary: str) -> None:
        """The run ended, well or not."""

    def close(self) -> None:
        """Shows what is still to be shown, for at most two seconds, and gives the terminal back; safe to repeat."""
