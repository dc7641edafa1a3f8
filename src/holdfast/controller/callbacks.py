"""Hooks of a user, called in the driver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.persistence.right_of_way import as_usual

logger = logging.getLogger("holdfast")


@dataclass(frozen=True)
class RunContext:
    """Which run a callback is called for.

    Attributes:
        run_id: The run's own id, the same over all its drivers.
        name: Its name.
        path: Its directory.
        attempt: The life of the worker group.
    """

    run_id: str
    name: str
    path: str
    attempt: int


class UserCallback:
    """Derive from it and pass an instance by `RunConfig(callbacks=[...])`.

    The methods run in the driver's loop, between reports: what takes long delays them. An exception in one is logged
    and ends nothing.
    """

    def after_report(
        self, run_context: RunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Every rank has made a report.

        Args:
            metrics: What each rank reported, by rank.
            checkpoint: What it committed, or None.
        """

    def after_exception(self, run_context: RunContext, worker_exceptions: Mapping[int, BaseException]) -> None:
        """A group of workers has failed; exceptions by rank."""


def call_all(callbacks: Sequence[UserCallback], call: Callable[[UserCallback], None]) -> None:
    """Calls one hook of every callback; the user's errors stay the user's."""
    with as_usual():  # it may start programs
        for callback in callbacks:
            try:
                call(callback)
            except Exception:
                logger.exception("a callback failed; training goes on: %s", type(callback).__qualname__)
