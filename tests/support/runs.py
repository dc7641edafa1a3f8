"""Runs made the short way: one driver, reports with small files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.config import CheckpointConfig
from holdfast.metrics import encode_metrics
from holdfast.persistence import layout
from holdfast.persistence.staging import stage
from holdfast.persistence.writer import RunWriter
from holdfast.records import CommittedCheckpoint
from holdfast.stores import open_store
from holdfast.stores.base import Store


def open_run(store: Store | Path | str, config: CheckpointConfig | None = None, **options: Any) -> RunWriter:
    """The driver of the run at a store or path, in its first attempt."""
    opened = store if isinstance(store, Store) else open_store(store)
    writer = RunWriter.open(
        opened,
        name=opened.url.rstrip("/").rpartition("/")[2],
        checkpoint_config=config or CheckpointConfig(),
        **options,
    )
    writer.begin_attempt(writer.first_attempt)
    return writer


def next_report(writer: RunWriter) -> int:
    """The index of the next report that `report` will make on its own."""
    used = [checkpoint.report_index for checkpoint in writer.checkpoints()]
    return max([writer.first_report, *(index + 1 for index in used)])


def report(
    writer: RunWriter,
    source: Path,
    files: Mapping[str, bytes] | Sequence[Mapping[str, bytes]],
    metrics: Mapping[str, Any] | None = None,
    *,
    index: int | None = None,
    name: str | None = None,
    adopt: bool = False,
    validates: bool = False,
) -> CommittedCheckpoint:
    """One report with a checkpoint, from the files of one rank, or of several."""
    shards = [files] if isinstance(files, Mapping) else files
    index = next_report(writer) if index is None else index
    encoded = encode_metrics(dict(metrics or {}))
    checkpoint = writer.begin_checkpoint(name or layout.checkpoint_name(index), index)
    try:
        receipts = []
        for rank, contents in enumerate(shards):
            root = source / f"report-{index}-rank-{rank}"
            write_files(root, contents)
            receipts.append(checkpoint.store_shard(stage(root, rank, adopt=adopt, remove=adopt)).result())
        attempt = writer.first_attempt
        committed = checkpoint.commit(
            receipts, metrics=encoded, world_size=len(shards), attempt=attempt, validates=validates
        )
    except BaseException:
        checkpoint.abort()
        raise
    writer.log_report(report=index, checkpoint=committed.name, metrics=encoded, other_ranks=None)
    return committed


def write_files(root: Path, contents: Mapping[str, bytes]) -> None:
    """Files below a directory, which is made even for none."""
    root.mkdir(parents=True, exist_ok=True)
    for path, data in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def names(writer: RunWriter) -> list[str]:
    """The names of what a driver holds."""
    return [checkpoint.name for checkpoint in writer.checkpoints()]


def visible(run: Path) -> list[str]:
    """What a person sees in a run's directory."""
    return sorted(path.name for path in run.iterdir() if not path.name.startswith("."))


def hidden(run: Path) -> list[str]:
    """What lies hidden in a run's directory beside its records."""
    return sorted(path.name for path in run.iterdir() if path.name.startswith(".") and path.name != layout.PRIVATE)


def read_json(path: Path) -> Any:
    """A record, decoded."""
    return json.loads(path.read_bytes())
