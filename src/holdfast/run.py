"""`Run`: the read side of any run, live or finished, from its storage alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from holdfast.checkpoint import Checkpoint
from holdfast.checks import check_choice
from holdfast.config import SCORE_ORDERS
from holdfast.errors import ConfigurationError, StoreNotFoundError
from holdfast.metrics import decode_metrics, flatten
from holdfast.persistence import layout
from holdfast.persistence.finding import open_run
from holdfast.persistence.reading import RunReader
from holdfast.persistence.retention import RetentionPolicy, best, score_in
from holdfast.records import CommittedCheckpoint, Note, ReportLine
from holdfast.reported import ReportedCheckpoint, status_of
from holdfast.secrecy import PickledWithoutSecrets
from holdfast.stores import open_store, plain_filesystem
from holdfast.stores.wrapped import without_credentials

if TYPE_CHECKING:
    import pandas as pd


class Run(PickledWithoutSecrets):
    """A run in storage. It only reads, takes no lock from a driver, and every call tells the state of that moment.

    A directory that Ray Train wrote (V2, as of 2.60) opens as well, with what its `checkpoint_manager_snapshot.json` says.

    Args:
        path: `<storage_path>/<run name>`.
        storage_filesystem: A file system object of fsspec or pyarrow, in which it is a path.
        storage_options: What reaches it, beside the options in the URL.

    Raises:
        RunNotFoundError: No run lies there.
        FormatError: From any call: the record of a run of Ray Train's is torn, or of a kind that is not known here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        storage_filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._store = open_store(path, storage_filesystem, storage_options)
        self._filesystem = plain_filesystem(storage_filesystem)
        self._reader: RunReader = open_run(self._store)

    @classmethod
    def _of(cls, reader: RunReader) -> Run:
        run = cls.__new__(cls)
        run._store, run._filesystem, run._reader = reader.store, None, reader
        return run

    @property
    def name(self) -> str:
        """The run's name."""
        return self._reader.name()

    @property
    def path(self) -> str:
        """Where it lies."""
        return self._store.url

    def __repr__(self) -> str:
        return f"Run({self.path!r})"

    @property
    def checkpoints(self) -> list[ReportedCheckpoint]:
        """What is committed and not known to be damaged, oldest first."""
        found = self._reader.catalog()
        return [self._reported(each, found.notes.get(each.name)) for each in found.checkpoints]

    @property
    def latest(self) -> ReportedCheckpoint | None:
        """The newest of `checkpoints`, or None."""
        found = self._reader.newest()
        return self._reported(*found) if found is not None else None

    def best(self, metric: str | None = None, mode: Literal["max", "min"] | None = None) -> ReportedCheckpoint | None:
        """The best checkpoint that is kept, or None where there is none.

        Args:
            metric: What ranks, nested as `a/b`; by default the run's score attribute, and age where it has none. (A run of Ray Train's does
                not say which it has; there the default is the order that it gave its checkpoints.)
            mode: `max` or `min`; by default the run's score order.

        Raises:
            ConfigurationError: Neither the call nor the run says the mode, or no checkpoint has the metric.
        """
        found = self._reader.catalog()
        policy = ranking(self._reader.policy(found), metric, mode)
        ranked = rank(found.checkpoints, policy, self.path)
        return self._reported(ranked[-1], found.notes.get(ranked[-1].name)) if ranked else None

    def reports(self) -> list[dict[str, Any]]:
        """Every report of every attempt, oldest first: `report`, `attempt`, `time`, `checkpoint`, `metrics`.

        Ray Train keeps those only whose checkpoints it keeps, counts them from 0, and says nothing of attempt and time: these are None.
        """
        return [
            {
                "report": line.report,
                "attempt": line.attempt,
                "time": line.time,
                "checkpoint": line.checkpoint,
                "metrics": decode_metrics(line.metrics),
            }
            for line in self._reader.lines()
        ]

    def metrics(self, ranks: Literal["first", "all"] = "first") -> pd.DataFrame:
        """A table of every report of every attempt, oldest first.

        Args:
            ranks: `first` for rank 0's metrics, one row a report; `all` for a row a report and rank.

        Raises:
            ImportError: pandas is not installed.
        """
        check_choice("Run.metrics(ranks=...)", ranks, ("first", "all"))
        return table(self._reader.lines(), all_ranks=ranks == "all")

    def verify(self) -> dict[str, list[str]]:
        """Reads every checkpoint and compares it with its manifest.

        Files that were registered in place in a bucket have no digest: of them the size alone is compared, and a warning says so.

        Returns:
            What is wrong, by the checkpoint's name; empty if nothing is. Of a run of Ray Train's, which has no digests, each checkpoint
            is named and says so: that nothing is wrong can be said of none.
        """
        found = self._reader.catalog()
        problems = {name: [reason] for name, reason in found.damaged.items()}
        for checkpoint in found.checkpoints:
            if self._reader.without_digests is not None:
                problems[checkpoint.name] = [self._reader.without_digests]
                continue
            try:
                damages = self._checkpoint(checkpoint.name).verify()
            except StoreNotFoundError:  # retention has deleted it meanwhile
                continue
            if damages and not self._is_gone(checkpoint.name):
                problems[checkpoint.name] = [str(damage) for damage in damages]
        return problems

    @property
    def driver(self) -> str | None:
        """Who drives the run now, and since when; None if nobody does, or where that is not known, as of a run of Ray Train's."""
        return self._reader.driver()

    def _without_secrets(self) -> dict[str, Any]:
        return {**self.__dict__, "_filesystem": without_credentials(self._filesystem)}

    def _is_gone(self, name: str) -> bool:
        """Whether nothing is left that says that there is a checkpoint: its deletion, which begins with that, is no damage."""
        return not self._store.exists(layout.manifest_key(name))

    def _checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint._from_store(self._store.child(name), filesystem=self._filesystem)

    def _reported(self, committed: CommittedCheckpoint, note: Note | None) -> ReportedCheckpoint:
        status = status_of(note.validation if note is not None else None)
        return ReportedCheckpoint(self._checkpoint(committed.name), decode_metrics(committed.metrics), status)


def ranking(configured: RetentionPolicy, metric: str | None, mode: str | None) -> RetentionPolicy:
    """What to rank by: the call's wish, else the run's configuration.

    Raises:
        ConfigurationError: A mode that is none, or a metric without one that the run does not rank by.
    """
    if mode is not None:
        check_choice("mode", mode, SCORE_ORDERS)
    if metric is None:
        return dataclasses.replace(configured, num_to_keep=None, order=mode or configured.order)
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
