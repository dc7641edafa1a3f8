"""A run of Ray Train's, read as if it were one of ours; what it does not say stays unsaid, and nothing is written to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from holdfast.errors import FormatError, MetricsError
from holdfast.metrics import encode_metrics
from holdfast.persistence.catalog import Catalog
from holdfast.persistence.ray_snapshot import SNAPSHOT, RayCheckpoint, Snapshot, read_snapshot
from holdfast.persistence.reading import RunReader
from holdfast.persistence.retention import Rank, RetentionPolicy
from holdfast.records import CommittedCheckpoint, Note, ReportLine
from holdfast.stores.base import Store

# What Ray Train calls a checkpoint that its user gave no name; such names sort by their time.
_DATED = re.compile(r"checkpoint_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d+")


@dataclass(frozen=True)
class GivenRanking(RetentionPolicy):
    """The ranking of a run that says how its checkpoints rank and not by what.

    Attributes:
        places: The place of each name; a higher one is better.
    """

    places: dict[str, int] = field(default_factory=dict)

    def rank(self, checkpoint: CommittedCheckpoint) -> Rank:
        """Where the run's own record has it."""
        return (True, float(self.places.get(checkpoint.name, -1)), checkpoint.report_index, checkpoint.name)


class RayRun(RunReader):
    """A run of Ray Train's, of which its snapshot file tells."""

    without_digests = "Ray Train keeps no digests, so there is nothing that its bytes could be compared with"

    def catalog(self) -> Catalog:
        """The checkpoints that the snapshot names and that are there; what lies there beside was never registered."""
        snapshot = read_snapshot(self.store)
        found = Catalog(directories={entry.key for entry in self.store.list() if entry.is_directory})
        found.places = {each.checkpoint_dir_name: place for place, each in enumerate(snapshot.checkpoint_results)}
        statuses = _statuses(snapshot)
        for each, index in _in_order(snapshot):
            name = each.checkpoint_dir_name
            _check_name(self.store, name)
            if name not in found.directories and not ("/" in name and self.store.exists(name)):
                found.damaged[name] = f"its directory is gone, though {SNAPSHOT} names it"
                continue
            found.checkpoints.append(_committed(self.store, each, index))
            if name in statuses:
                found.notes[name] = Note(validation=statuses[name])
        return found

    def policy(self, found: Catalog) -> RetentionPolicy:
        """The order of the snapshot, which does not say by what the run ranked."""
        return GivenRanking(places=found.places)

    def lines(self) -> Iterator[ReportLine]:
        """The reports of the checkpoints that the snapshot names: of all others nothing is kept."""
        for each, index in _in_order(read_snapshot(self.store)):
            yield _line(self.store, each, index)

    def last_line(self, found: Catalog | None = None) -> ReportLine | None:
        """That of the newest checkpoint."""
        return max(self.lines(), key=lambda line: line.report, default=None)

    def driver(self) -> None:
        """None: Ray Train leaves no sign of life in a run."""
        return


def _in_order(snapshot: Snapshot) -> list[tuple[RayCheckpoint, int]]:
    """The checkpoints with the numbers of their reports, oldest first."""
    results, indices = snapshot.checkpoint_results, snapshot.checkpoint_report_indices
    if indices is not None:
        return sorted(zip(results, indices, strict=True), key=lambda pair: pair[1])
    latest = snapshot.latest_checkpoint_result
    if all(_DATED.fullmatch(each.checkpoint_dir_name) for each in results):
        results = sorted(results, key=lambda each: each.checkpoint_dir_name)
    elif latest is not None:
        # Of the others nothing says which is older; the order is the ranking's.
        results = sorted(results, key=lambda each: each.checkpoint_dir_name == latest.checkpoint_dir_name)
    return [(each, place) for place, each in enumerate(results)]


def _statuses(snapshot: Snapshot) -> dict[str, str]:
    """What became of the validation of each checkpoint that has one, in the words of a `Note`."""
    return {
        **dict.fromkeys(snapshot.validated_checkpoint_dir_names, "validated"),
        **dict.fromkeys(snapshot.timed_out_validation_checkpoint_dir_names, "timeout"),
        **dict.fromkeys(snapshot.failed_validation_checkpoint_dir_names, "failed"),
        **{each.checkpoint_dir_name: "pending" for each in snapshot.pending_training_results},
    }


def _committed(store: Store, found: RayCheckpoint, index: int) -> CommittedCheckpoint:
    return CommittedCheckpoint(
        name=found.checkpoint_dir_name,
        id="",
        report_index=index,
        created="",
        epoch=0,
        attempt=0,
        world_size=0,
        metrics=_metrics(store, found),
        num_files=0,
        size_bytes=0,
    )


def _line(store: Store, found: RayCheckpoint, index: int) -> ReportLine:
    return ReportLine(
        report=index,
        attempt=None,
        time=None,
        checkpoint=found.checkpoint_dir_name,
        metrics=_metrics(store, found),
    )


def _metrics(store: Store, found: RayCheckpoint) -> msgspec.Raw:
    try:
        return msgspec.Raw(encode_metrics(found.metrics))
    except MetricsError as error:
        raise FormatError(f"{store.url}/{SNAPSHOT}: {found.checkpoint_dir_name}: {error}") from error


def _check_name(store: Store, name: str) -> None:
    """A snapshot is untrusted input: whoever wrote it must not make us read elsewhere."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise FormatError(f"{store.url}/{SNAPSHOT} names the checkpoint {name!r}, which does not lie inside the run")
