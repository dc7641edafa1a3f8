"""`Run`: the read side of any run, live or finished, from its storage alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from holdfast.checkpoint import Checkpoint
from holdfast.errors import ConfigurationError, RunNotFoundError
from holdfast.metrics import decode_metrics, flatten
from holdfast.persistence import catalog as catalogs
from holdfast.persistence import layout, lease, metrics_log
from holdfast.persistence.opening import read_policy
from holdfast.persistence.retention import RetentionPolicy, best, score_in
from holdfast.records import CommittedCheckpoint, Note, ReportLine
from holdfast.reported import ReportedCheckpoint, status_of
from holdfast.stores import Store, open_store, plain_filesystem

if TYPE_CHECKING:
    import pandas as pd

_NAMED_RUNS = 10


class Run:
    """A run in storage. It only reads, takes no lock from a driver, and every call tells the state of that moment.

    Args:
        path: `<storage_path>/<run name>`.
        storage_filesystem: A file system object of fsspec or pyarrow, in which it is a path.
        storage_options: What reaches it, beside the options in the URL.

    Raises:
        RunNotFoundError: No run lies there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        storage_filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._store = open_store(path, storage_filesystem, storage_options)
        self._filesystem = plain_filesystem(storage_filesystem)
        _require_run(self._store)

    @property
    def name(self) -> str:
        """The run's name."""
        record = catalogs.read_run_record(self._store)
        return record.name if record is not None and record.name else self.path.rstrip("/").rpartition("/")[2]

    @property
    def path(self) -> str:
        """Where it lies."""
        return self._store.url

    def __repr__(self) -> str:
        return f"Run({self.path!r})"

    @property
    def checkpoints(self) -> list[ReportedCheckpoint]:
        """What is committed and not known to be damaged, oldest first."""
        found = catalogs.load(self._store)
        return [self._reported(each, found.notes.get(each.name)) for each in found.checkpoints]

    @property
    def latest(self) -> ReportedCheckpoint | None:
        """The newest of `checkpoints`, or None."""
        found = catalogs.load(self._store)
        if not found.checkpoints:
            return None
        newest = found.checkpoints[-1]
        return self._reported(newest, found.notes.get(newest.name))

    def best(self, metric: str | None = None, mode: Literal["max", "min"] | None = None) -> ReportedCheckpoint | None:
        """The best checkpoint that is kept, or None where there is none.

        Args:
            metric: What ranks, nested as `a/b`; by default the run's score attribute, and age where it has none.
            mode: `max` or `min`; by default the run's score order.

        Raises:
            ConfigurationError: Neither the call nor the run says the mode, or no checkpoint has the metric.
        """
        found = catalogs.load(self._store)
        policy = ranking(read_policy(configuration_of(self._store, found)), metric, mode)
        ranked = rank(found.checkpoints, policy, self.path)
        return self._reported(ranked[-1], found.notes.get(ranked[-1].name)) if ranked else None

    def reports(self) -> list[dict[str, Any]]:
        """Every report of every attempt, oldest first: `report`, `attempt`, `time`, `checkpoint`, `metrics`."""
        return [
            {
                "report": line.report,
                "attempt": line.attempt,
                "time": line.time,
                "checkpoint": line.checkpoint,
                "metrics": decode_metrics(line.metrics),
            }
            for line in self._lines()
        ]

    def metrics(self, ranks: Literal["first", "all"] = "first") -> pd.DataFrame:
        """A table of every report of every attempt, oldest first.

        Args:
            ranks: `first` for rank 0's metrics, one row a report; `all` for a row a report and rank.

        Raises:
            ImportError: pandas is not installed.
        """
        if ranks not in ("first", "all"):
            raise ConfigurationError(f"Run.metrics(ranks=...) must be 'first' or 'all', not {ranks!r}")
        return table(self._lines(), all_ranks=ranks == "all")

    def verify(self) -> dict[str, list[str]]:
        """Reads every checkpoint and compares it with its manifest: what is wrong, by name; empty lists if nothing."""
        found = catalogs.load(self._store)
        problems = {name: [reason] for name, reason in found.damaged.items()}
        for checkpoint in found.checkpoints:
            damages = self._checkpoint(checkpoint.name).verify()
            problems[checkpoint.name] = [str(damage) for damage in damages]
        return problems

    @property
    def driver(self) -> str | None:
        """Who drives the run now, and since when, or None."""
        return lease.current_driver(self._store)

    def _lines(self) -> Iterator[ReportLine]:
        found = catalogs.Catalog()
        catalogs.load_epochs(self._store, found)
        return metrics_log.read_lines(self._store, found.epochs)

    def _checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint._from_store(self._store.child(name), filesystem=self._filesystem)

    def _reported(self, committed: CommittedCheckpoint, note: Note | None) -> ReportedCheckpoint:
        status = status_of(note.validation if note is not None else None)
        return ReportedCheckpoint(self._checkpoint(committed.name), decode_metrics(committed.metrics), status)


def configuration_of(store: Store, found: catalogs.Catalog) -> dict[str, str]:
    """How the run was configured by its newest driver."""
    if found.record is not None and found.record.configuration:
        return found.record.configuration
    record = catalogs.read_run_record(store)
    return record.configuration if record is not None else {}


def ranking(configured: RetentionPolicy, metric: str | None, mode: str | None) -> RetentionPolicy:
    """What to rank by: the call's wish, else the run's configuration.

    Raises:
        ConfigurationError: A mode that is none, or a metric without one that the run does not rank by.
    """
    if mode is not None and mode not in ("max", "min"):
        raise ConfigurationError(f"mode must be 'max' or 'min', not {mode!r}")
    if metric is None:
        return RetentionPolicy(None, configured.attribute, mode or configured.order)
    if mode is None and metric != configured.attribute:
        raise ConfigurationError(
            f"{metric!r} is not the run's checkpoint_score_attribute, so say what is better: mode='max' or mode='min'"
        )
    return RetentionPolicy(None, metric, mode or configured.order)


def rank(checkpoints: Iterable[CommittedCheckpoint], policy: RetentionPolicy, where: str) -> list[CommittedCheckpoint]:
    """The checkpoints from worst to best.

    Raises:
        ConfigurationError: There are some, and none has the metric.
    """
    ranked = best(checkpoints, policy)
    if ranked and policy.attribute is not None and score_in(ranked[-1], policy.attribute) is None:
        known = sorted({key for each in ranked for key in flatten(decode_metrics(each.metrics))})
        raise ConfigurationError(
            f"no checkpoint of {where} has a number under {policy.attribute!r}; their metrics are: {', '.join(known)}"
        )
    return ranked


def table(lines: Iterable[ReportLine], *, all_ranks: bool) -> pd.DataFrame:
    """Reports as a table, a column a metric (nested ones as `a/b`).

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("tables of metrics need pandas; install it with: pip install holdfast[pandas]") from error
    return pd.DataFrame(list(_rows(lines, all_ranks=all_ranks)))


def _rows(lines: Iterable[ReportLine], *, all_ranks: bool) -> Iterator[dict[str, Any]]:
    for line in lines:
        base = {
            "report_index": line.report,
            "attempt": line.attempt,
            "time": line.time,
            "checkpoint": line.checkpoint,
        }
        others = line.other_ranks or ()
        for number, raw in enumerate((line.metrics, *others) if all_ranks else (line.metrics,)):
            row = {**base, "rank": number} if all_ranks else dict(base)
            for key, value in flatten(decode_metrics(raw)).items():
                # A metric that is called as a column of ours keeps its values, under a longer name.
                row[f"metrics/{key}" if key in row else key] = value
            yield row


def _require_run(store: Store) -> None:
    if store.exists(layout.PRIVATE):
        return
    directories = [entry.key for entry in store.list() if entry.is_directory and not layout.is_hidden(entry.key)]
    # Checkpoints that were copied away from their run are still worth reading.
    if any(store.exists(layout.manifest_key(name)) for name in directories):
        return
    runs = sorted(name for name in directories if store.exists(f"{name}/{layout.PRIVATE}"))
    if runs:
        named = ", ".join(runs[:_NAMED_RUNS]) + (", …" if len(runs) > _NAMED_RUNS else "")
        raise RunNotFoundError(f"{store.url} is no run but a directory of runs; give one of them: {named}")
    what = "holds no run" if directories or store.exists("") else "does not exist"
    raise RunNotFoundError(f"{store.url} {what}; a run lies at <storage_path>/<name>, as `Result.path` says")
