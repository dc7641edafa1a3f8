"""What came of a run, for who called `fit()`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from holdfast.controller.failure import by_cause, signal_name, summarise
from holdfast.errors import ConfigurationError, ControllerError, TrainingInterrupted, WorkerGroupError
from holdfast.persistence.layout import LOGS
from holdfast.worker import returned

if TYPE_CHECKING:
    from holdfast.controller.controller import Outcome

logger = logging.getLogger("holdfast")


def error_of(outcome: Outcome, *, name: str, url: str, latest: str | None, max_failures: int) -> BaseException | None:
    """What `fit()` raises; None where the function returned on every rank.

    Args:
        name: The run's.
        url: Where it lies.
        latest: The name of its latest checkpoint.
        max_failures: As the run was configured.
    """
    if outcome.signum is not None:
        return TrainingInterrupted(
            f"run {name!r} was stopped by {signal_name(outcome.signum)}; what was committed is kept, fit() again "
            "with the same name and storage_path goes on from there",
            outcome.signum,
        )
    failure = outcome.controller_failure
    if isinstance(failure, ConfigurationError):
        return failure
    if failure is not None:
        error = ControllerError(f"run {name!r}: the driver failed: {type(failure).__name__}: {failure}", failure)
        error.__cause__ = failure
        return error
    if not outcome.failures:
        return None
    spared = max_failures < 0 or outcome.attempts <= max_failures
    why = "; not repeated again, as two attempts made the same mistake at once" if outcome.is_lasting and spared else ""
    kept = f"The latest checkpoint is {latest}" if latest else "There is no checkpoint"
    group_error = WorkerGroupError(
        f"run {name!r} {attempts_text(outcome)} (FailureConfig.max_failures={max_failures}{why}): {summarise(outcome.failures)}. "
        f"{kept}; the workers' output is kept in {url}/{LOGS}",
        outcome.failures,
    )
    # A person who lets it end the script sees the worker's own traceback first.
    group_error.__cause__ = outcome.failures[by_cause(outcome.failures)[0]]
    return group_error


def attempts_text(outcome: Outcome) -> str:
    """How often it was tried in vain."""
    return f"failed after {outcome.attempts} attempt" + ("s" if outcome.attempts > 1 else "")


def unpickled(value: bytes | None) -> Any:
    """What a worker's function returned; None where that cannot be read here."""
    if value is None:
        return None
    try:
        return returned.load(value)
    except Exception as error:  # noqa: BLE001 - a user's class may do anything when it is unpickled
        logger.warning("the function's return value cannot be read here: %s", error)
        return None
