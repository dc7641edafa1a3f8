"""Lines of the metrics log that a driver had no time to write, made anew from the manifests of their checkpoints.

A store that cannot append gets lines once a second (`metrics_log`), and where one can, a line comes after the commit. So a driver that
dies may leave checkpoints that are newer than the last line. None of them is deleted before its line is there (`writer`), so the next
driver finds them all, before it writes a line of its own. What it does not find are reports without a checkpoint, and the metrics
of other ranks than 0.
"""

from __future__ import annotations

import datetime

from holdfast.errors import StoreNotFoundError
from holdfast.persistence import layout, metrics_log
from holdfast.persistence.catalog import Catalog
from holdfast.persistence.manifest import decode_committed
from holdfast.persistence.reads import read_many
from holdfast.records import CommittedCheckpoint
from holdfast.stores.base import Store


def lost_lines(store: Store, found: Catalog) -> list[bytes]:
    """The lines of reports that are newer than the last one in the log, oldest first; each costs one reading.

    Args:
        store: Rooted at the run's directory.
        found: What a new driver has found there.

    Raises:
        FormatError: A manifest has become unreadable meanwhile.
        StorageError: The store failed.
    """
    last = metrics_log.last_line(store, found.epochs)
    newer = [each.name for each in found.checkpoints if last is None or each.report_index > last.report]

    def line(name: str) -> bytes | None:
        key = layout.manifest_key(name)
        try:
            # Anew, for the metrics in the catalog are with those of validations.
            return _line(decode_committed(store.read(key), f"{store.url}/{key}"))
        except StoreNotFoundError:
            return None

    return [each for each in read_many(store, line, newer) if each is not None]


def _line(checkpoint: CommittedCheckpoint) -> bytes:
    try:
        time_s = datetime.datetime.fromisoformat(checkpoint.created).timestamp()
    except ValueError:
        time_s = 0.0
    return metrics_log.encode_line(
        checkpoint.report_index, checkpoint.attempt, time_s, checkpoint.name, bytes(checkpoint.metrics), None
    )
