"""`Result`: how a run stood when `fit()` ended, or when it was looked at."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from holdfast.checkpoint import Checkpoint
from holdfast.config import CheckpointConfig
from holdfast.errors import StorageError
from holdfast.metrics import decode_metrics
from holdfast.persistence.catalog import Catalog
from holdfast.persistence.finding import open_run
from holdfast.persistence.reading import OwnRun, RunReader
from holdfast.persistence.retention import RetentionPolicy, best
from holdfast.records import CommittedCheckpoint, ReportLine
from holdfast.run import rank, ranking, table
from holdfast.secrecy import PickledWithoutSecrets
from holdfast.stores import Store, open_store, plain_filesystem
from holdfast.stores.wrapped import without_credentials

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("holdfast")


@dataclass(frozen=True, eq=False)
class Result(PickledWithoutSecrets):
    """What came of a run. A later `fit()` of the same run does not change what this one says.

    (But its retention may delete files that this one refers to.) It can be pickled, with credentials as a `Checkpoint` can.

    Attributes:
        path: Where the run lies.
        metrics: Of the latest report, or None where there was none.
        error: Why `fit()` gave up, or None.
        return_value: What the training function returned on rank 0.
        filesystem: The file system object that the run was given, in which `path` is a path, or None.
    """

    path: str
    metrics: dict[str, Any] | None = None
    error: BaseException | None = None
    return_value: Any = None
    filesystem: Any = None
    _reader: RunReader = field(kw_only=True, repr=False)
    _committed: tuple[CommittedCheckpoint, ...] = field(kw_only=True, repr=False)
    _policy: RetentionPolicy = field(kw_only=True, repr=False)
    _last_report: int = field(kw_only=True, repr=False)

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        storage_filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Result:
        """The result of a run that lies in storage, also one of Ray Train's; its error and return value are not kept there.

        Args:
            path: `<storage_path>/<run name>`.
            storage_filesystem: A file system object of fsspec or pyarrow, in which it is a path.
            storage_options: What reaches it, beside the options in the URL.

        Raises:
            RunNotFoundError: No run lies there.
            FormatError: The record of a run of Ray Train's is torn, or of a kind that is not known here.
        """
        reader = open_run(open_store(path, storage_filesystem, storage_options))
        return cls._read(reader, filesystem=plain_filesystem(storage_filesystem))

    @classmethod
    def of_run(
        cls,
        store: Store,
        *,
        metrics: dict[str, Any] | None = None,
        error: BaseException | None = None,
        return_value: Any = None,
        checkpoint_config: CheckpointConfig | None = None,
        checkpoints: Sequence[CommittedCheckpoint] | None = None,
        filesystem: Any = None,
    ) -> Result:
        """The result of a run whose driver has just finished.

        Args:
            store: Rooted at the run's directory.
            metrics: Of the latest report, where the driver knows them.
            checkpoints: As the driver has them; read from storage where None.
        """
        policy = RetentionPolicy.of(checkpoint_config) if checkpoint_config is not None else None
        return cls._read(
            OwnRun(store),
            metrics=metrics,
            error=error,
            return_value=return_value,
            policy=policy,
            committed=checkpoints,
            filesystem=filesystem,
        )

    @classmethod
    def _read(
        cls,
        reader: RunReader,
        *,
        metrics: dict[str, Any] | None = None,
        error: BaseException | None = None,
        return_value: Any = None,
        policy: RetentionPolicy | None = None,
        committed: Sequence[CommittedCheckpoint] | None = None,
        filesystem: Any = None,
    ) -> Result:
        found = Catalog()
        last: ReportLine | None = None
        last_report = 0
        if committed is None:
            found = reader.catalog()
            committed = found.checkpoints
            last = reader.last_line(found)
        else:
            try:
                last = reader.last_line()
            except StorageError as unreadable:
                # Most likely what has ended the run; it must not take the place of the error that says so.
                _log.warning("the reports of %s cannot be read now: %s", reader.store.url, unreadable)
                last_report = sys.maxsize
        if last is not None:
            last_report = last.report
        if metrics is None and last is not None:
            metrics = decode_metrics(last.metrics)
        return cls(
            path=reader.store.url,
            metrics=metrics,
            error=error,
            return_value=return_value,
            filesystem=filesystem,
            _reader=reader,
            _committed=tuple(committed),
            _policy=policy if policy is not None else reader.policy(found),
            _last_report=last_report,
        )

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint, or None."""
        return self._open(self._committed[-1]) if self._committed else None

    @property
    def best_checkpoints(self) -> list[tuple[Checkpoint, dict[str, Any]]]:
        """The kept checkpoints with their metrics, the best one last; by age where the run has no score attribute."""
        return [(self._open(each), decode_metrics(each.metrics)) for each in best(self._committed, self._policy)]

    @cached_property
    def metrics_dataframe(self) -> pd.DataFrame:
        """A table of every report of every attempt, with its time and attempt.

        Raises:
            ImportError: pandas is not installed.
        """
        return table((line for line in self._reader.lines() if line.report <= self._last_report), all_ranks=False)

    def get_best_checkpoint(self, metric: str, mode: Literal["max", "min"]) -> Checkpoint | None:
        """The best of the kept checkpoints by a metric, or None where there is no checkpoint.

        Args:
            metric: Nested ones as `a/b`.
            mode: `max` or `min`.

        Raises:
            ConfigurationError: The mode is none, or no checkpoint has the metric.
        """
        ranked = rank(self._committed, ranking(self._policy, metric, mode), self.path)
        return self._open(ranked[-1]) if ranked else None

    def _without_secrets(self) -> dict[str, Any]:
        return {**self.__dict__, "filesystem": without_credentials(self.filesystem)}

    def _open(self, committed: CommittedCheckpoint) -> Checkpoint:
        return Checkpoint._from_store(self._reader.store.child(committed.name), filesystem=self.filesystem)
