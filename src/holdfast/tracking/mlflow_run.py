"""One MLflow run, open for writing."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from holdfast.tracking.entry import Entry, Scalar
from holdfast.tracking.tracker import Ending, Tracker

logger = logging.getLogger("holdfast")
_CHECKPOINT = "holdfast.checkpoint"
# What a server takes in one request, and as one name or value (mlflow.utils.validation).
_MAX_ITEMS = {"metrics": 1000, "params": 100, "tags": 100}
_MAX_NAME = 250
_MAX_VALUE = 6000
# What says that a request has something in it which MLflow does not take; its stores of files say INTERNAL_ERROR.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INTERNAL_ERROR")
_STATUS = {Ending.SUCCEEDED: "FINISHED", Ending.FAILED: "FAILED", Ending.INTERRUPTED: "KILLED"}


class MLflowRun(Tracker):
    """Writes to a run that exists.

    Args:
        client: An `MlflowClient`.
        run: Its `Run`.
        parameters: The hyperparameters, which are written at once.
        check_reachable: Raises an OSError where the server is away, which the client itself would say after minutes.
    """

    def __init__(
        self,
        client: Any,
        run: Any,
        parameters: Mapping[str, Scalar],
        check_reachable: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._check_reachable = check_reachable
        self._run_id = run.info.run_id
        self._refused: set[tuple[str, str]] = set()
        self._log_parameters(run.data.params, parameters)

    def log(self, entries: Sequence[Entry]) -> None:
        """As few requests as MLflow's limits allow; texts are left out, for it has numbers only."""
        from mlflow.entities import Metric, RunTag

        self._check_reachable()
        metrics = [
            Metric(name_of(name), number, round(entry.time_s * 1000), entry.step)
            for entry in entries
            for name, number in entry.numbers.items()
        ]
        self._send("metrics", metrics)
        checkpoint = next((entry.checkpoint for entry in reversed(entries) if entry.checkpoint is not None), None)
        if checkpoint is not None:
            self._send("tags", [RunTag(_CHECKPOINT, checkpoint)])

    def finish(self, ending: Ending) -> None:
        """Says how it ended."""
        self._client.set_terminated(self._run_id, _STATUS[ending])

    def _log_parameters(self, known: Mapping[str, str], parameters: Mapping[str, Scalar]) -> None:
        from mlflow.entities import Param, RunTag

        given = {name_of(name): str(value)[:_MAX_VALUE] for name, value in parameters.items()}
        self._send("params", [Param(name, value) for name, value in given.items() if name not in known])
        changed = {name: value for name, value in given.items() if name in known and known[name] != value}
        self._send("tags", [RunTag(name_of(f"holdfast.param.{name}"), value) for name, value in changed.items()])

    def _send(self, kind: str, items: Sequence[Any]) -> None:
        """All but what has been refused before.

        Args:
            kind: `metrics`, `params` or `tags`.
            items: MLflow's entities, each with its `key`.

        Raises:
            ConnectionError: The server is away.
            MlflowException: It takes none of them.
        """
        wanted = [item for item in items if (kind, item.key) not in self._refused]
        for first in range(0, len(wanted), _MAX_ITEMS[kind]):
            self._send_together(kind, wanted[first : first + _MAX_ITEMS[kind]])

    def _send_together(self, kind: str, items: Sequence[Any]) -> None:
        """In one request, which MLflow takes or refuses as a whole; then each name by itself, so that one costs the others nothing."""
        whole = self._refusal(kind, items)
        if whole is None:
            return
        by_name: dict[str, list[Any]] = {}
        for item in items:
            by_name.setdefault(item.key, []).append(item)
        if len(by_name) == 1:
            raise whole
        refusals = {name: self._refusal(kind, own) for name, own in by_name.items()}
        if None not in refusals.values():
            raise whole  # it is no matter of a name
        for name, refusal in refusals.items():
            if refusal is not None:
                self._refused.add((kind, name))
                logger.warning("MLflow does not take %r among the %s, which is left out there: %s", name, kind, refusal)

    def _refusal(self, kind: str, items: Sequence[Any]) -> Exception | None:
        """One request; what it is answered, where that may be the fault of one of the items."""
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        try:
            self._client.log_batch(self._run_id, **{kind: items})
        except MlflowException as error:
            # After all of MLflow's own tries.
            if isinstance(error.__cause__ or error.__context__, RequestException):
                raise ConnectionError(str(error)) from error
            if error.error_code not in _REFUSALS:
                raise
            refusal: Exception = error
            return refusal
        return None


def name_of(name: str) -> str:
    """What MLflow takes as a name: some signs only, and what would be a path inside of the run's directory."""
    signs = re.sub(r"[^\w\-. :/]", "_", name).replace("..", "_")
    path = posixpath.normpath(signs[:_MAX_NAME]).lstrip("/")
    return path if path not in ("", ".") else "_"
