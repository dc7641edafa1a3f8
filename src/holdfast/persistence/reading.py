"""How a run is read, whoever wrote it; `finding` says which of these a directory is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from holdfast.persistence import catalog as catalogs
from holdfast.persistence import lease, metrics_log
from holdfast.persistence.opening import read_policy
from holdfast.persistence.retention import RetentionPolicy
from holdfast.records import CommittedCheckpoint, Note, ReportLine
from holdfast.stores.base import Store


class RunReader(ABC):
    """A run in storage, read without a lock; each call looks anew.

    Attributes:
        store: Rooted at the run's directory.
        without_digests: Why the bytes of its checkpoints cannot be compared with anything, or None where they can.
    """

    without_digests: ClassVar[str | None] = None

    def __init__(self, store: Store) -> None:
        self.store = store

    def name(self) -> str:
        """The run's name; by default its directory's."""
        return self.store.url.rstrip("/").rpartition("/")[2]

    @abstractmethod
    def catalog(self) -> catalogs.Catalog:
        """What it holds.

        Raises:
            FormatError: The record of it cannot be read.
            StorageError: The store cannot be listed.
        """

    def newest(self) -> tuple[CommittedCheckpoint, Note | None] | None:
        """The newest checkpoint that is not known to be damaged, with its note.

        Raises:
            FormatError, StorageError: As `catalog`.
        """
        return _last_of(self.catalog())

    @abstractmethod
    def policy(self, found: catalogs.Catalog) -> RetentionPolicy:
        """How the run ranks its checkpoints.

        Args:
            found: What `catalog` has just given.
        """

    @abstractmethod
    def lines(self) -> Iterator[ReportLine]:
        """Its reports, oldest first."""

    @abstractmethod
    def last_line(self, found: catalogs.Catalog | None = None) -> ReportLine | None:
        """Its last report.

        Args:
            found: What `catalog` has just given, if it was asked.
        """

    @abstractmethod
    def driver(self) -> str | None:
        """Who drives it now, and since when; None if nobody does, or nobody can tell."""


class OwnRun(RunReader):
    """A run of Holdfast's."""

    def name(self) -> str:
        """As its record says; its directory may have been moved."""
        record = catalogs.read_run_record(self.store)
        return record.name if record is not None and record.name else super().name()

    def catalog(self) -> catalogs.Catalog:
        """See `RunReader`; a record that cannot be read is a problem in the catalog."""
        return catalogs.load(self.store)

    def newest(self) -> tuple[CommittedCheckpoint, Note | None] | None:
        """See `RunReader`; without reading what is older, where names say what that is."""
        return _last_of(catalogs.load_newest(self.store))

    def policy(self, found: catalogs.Catalog) -> RetentionPolicy:
        """As its newest driver was configured."""
        if found.record is not None and found.record.configuration:
            return read_policy(found.record.configuration)
        record = catalogs.read_run_record(self.store)
        return read_policy(record.configuration if record is not None else {})

    def lines(self) -> Iterator[ReportLine]:
        """Every report of every attempt."""
        return metrics_log.read_lines(self.store, self._epochs().epochs)

    def last_line(self, found: catalogs.Catalog | None = None) -> ReportLine | None:
        """See `RunReader`."""
        return metrics_log.last_line(self.store, (found or self._epochs()).epochs)

    def driver(self) -> str | None:
        """See `RunReader`."""
        return lease.current_driver(self.store)

    def _epochs(self) -> catalogs.Catalog:
        """A catalog of the epoch records alone."""
        found = catalogs.Catalog()
        catalogs.load_epochs(self.store, found)
        return found


def _last_of(found: catalogs.Catalog) -> tuple[CommittedCheckpoint, Note | None] | None:
    if not found.checkpoints:
        return None
    newest = found.checkpoints[-1]
    return newest, found.notes.get(newest.name)
