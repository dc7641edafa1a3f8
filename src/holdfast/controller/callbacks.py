"""Hooks of a user, called in the driver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from holdfast.checkpoint import Checkpoint
from holdfast.persistence.right_of_way import as_usual

if TYPE_CHECKING:
    from holdfast.config import RunConfig, ScalingConfig
    from holdfast.worker.backend import BackendConfig

logger = logging.getLogger("holdfast")


@dataclass(frozen=True)
class RunContext:
    """Which run a callback is called for.

    Attributes:
        run_id: The run's own id, the same over all its drivers.
        name: Its name.
        path: Its directory.
        attempt: The life of the worker group; after the run, of the last report or failure.
        report: The index of the report, over all attempts; None where the call is about none.
        train_loop_config: What the trainer was given for the function.
        run_config: The trainer's, with the run's name also where it was generated.
        scaling_config: The trainer's.
        backend_config: How its framework prepares workers.
    """

    run_id: str
    name: str
    path: str
    attempt: int
    report: int | None = None
    # Configs hold passwords, tokens, and whole arrays: nothing for the line of a log that shows this.
    train_loop_config: Mapping[str, Any] | None = field(default=None, repr=False)
    run_config: RunConfig | None = field(default=None, repr=False)
    scaling_config: ScalingConfig | None = None
    backend_config: BackendConfig | None = None

    @classmethod
    def of(cls, trainer: Any, run_id: str, name: str, path: str, attempt: int) -> RunContext:
        """That of a run's first attempt in a `fit()`.

        Args:
            trainer: The `DataParallelTrainer`, of which nothing here knows.
        """
        return cls(
            run_id,
            name,
            path,
            attempt,
            train_loop_config=trainer.train_loop_config,
            run_config=replace(trainer.run_config, name=name),
            scaling_config=trainer.scaling_config,
            backend_config=trainer.backend_config,
        )


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

    def after_run(self, run_context: RunContext, error: BaseException | None) -> None:
        """`fit()` is about to return, or to raise; called once for each that opened the run, outside of the driver's loop.

        Signals are the script's own again, so what waits here ends by Ctrl-C.

        Args:
            error: What `fit()` raises, or None.
        """


class Callbacks:
    """A user's callbacks during one `fit()`; their errors stay theirs."""

    def __init__(self, callbacks: Sequence[UserCallback]) -> None:
        self._callbacks = tuple(callbacks)
        self._context: RunContext | None = None

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def begin(self, context: RunContext) -> None:
        """The run is open; the context is the one of its first attempt."""
        self._context = context

    def reported(self, attempt: int, report: int, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Every rank has made a report."""
        self._call(lambda each, context: each.after_report(context, metrics, checkpoint), attempt, report)

    def failed(self, attempt: int, failures: Mapping[int, BaseException]) -> None:
        """A group of workers has failed."""
        self._call(lambda each, context: each.after_exception(context, failures), attempt)

    def ended(self, error: BaseException | None) -> None:
        """`fit()` ends; nothing happens where the run was never opened."""
        self._call(lambda each, context: each.after_run(context, error))

    def _call(
        self, call: Callable[[UserCallback, RunContext], None], attempt: int | None = None, report: int | None = None
    ) -> None:
        if self._context is None:
            return
        context = replace(self._context, attempt=self._context.attempt if attempt is None else attempt, report=report)
        self._context = replace(context, report=None)
        with as_usual():  # it may start programs
            for callback in self._callbacks:
                try:
                    call(callback, context)
                except Exception:
                    logger.exception("a callback failed, which ends nothing else: %s", type(callback).__qualname__)
