"""The frozen types that travel through the pipeline, each stage taking what the one before it made.

    report() ─► Report ─► StagedShard ─► ShardReceipt ×N ─► Manifest ─► CommittedCheckpoint ─► RetentionPlan

Those that are stored are read leniently: unknown fields are ignored, missing ones have defaults, so an older
reader and a newer writer get along. Paths in records are *record paths* (`layout.encode_path`): relative,
`/`-separated, valid UTF-8 whatever bytes the file's name holds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# 2: files of more than 16 MiB are digested in parts.
FORMAT_VERSION = 2

FileKind = Literal["file", "symlink", "directory"]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all records."""


class StagedFile(Record, frozen=True):
    """One file as the worker saw it when it called `report`.

    Attributes:
        path: Record path below the shard's root.
        kind: `directory` only for empty ones; others follow from the files in them.
        size_bytes: Apparent size; 0 for what is no regular file.
        mode: Permission bits (`st_mode & 0o7777`).
        mtime_ns: With `ctime_ns` and the size: what shows that the file was modified after the hand-over.
        num_links: How many names the file has; fewer explain a changed `ctime_ns`.
        target: Where a symlink points, relative to its own directory; a record path.
        source: Where the bytes are, if not at `path`: an open file of a process (`/proc/…/fd/…`).
    """

    path: str
    kind: FileKind = "file"
    size_bytes: int = 0
    mode: int = 0o644
    mtime_ns: int = 0
    ctime_ns: int = 0
    num_links: int = 1
    target: str | None = None
    source: str | None = None


class StagedShard(Record, frozen=True):
    """One rank's part of a checkpoint, handed over to the node and not yet stored.

    Attributes:
        rank: World rank of the worker that reported it.
        root: Absolute directory (a record path) that the files' paths are relative to.
        files: In a stable order (sorted by path).
        adopt: The node may take the files over by a hard link: nobody writes to them any more.
        remove: The node removes what was staged once it is committed.
        metadata: The directory's user metadata (`.metadata.json`) as JSON text, or None. Not part of `files`:
            it may change after the commit.
    """

    rank: int
    root: str
    files: tuple[StagedFile, ...]
    adopt: bool = False
    remove: bool = False
    metadata: str | None = None


class StoredFile(Record, frozen=True):
    """One file of a checkpoint in storage, as its manifest lists it.

    Attributes:
        digest: The algorithm, a colon and the digest of the content in hexadecimal (see `persistence/digest.py`), or None where a
            file was registered in place and not read.
        rank: The lowest rank that wrote it.
    """

    path: str
    kind: FileKind = "file"
    size_bytes: int = 0
    mode: int = 0o644
    digest: str | None = None
    rank: int = 0
    target: str | None = None


class ShardReceipt(Record, frozen=True):
    """What the node says when every file of a shard is stored: one entry a file, in the shard's order."""

    rank: int
    files: tuple[StoredFile, ...]
    metadata: str | None = None


class Manifest(Record, frozen=True):
    """What a checkpoint consists of: `.manifest.json`, written last, never changed.

    Attributes:
        id: A random text that tells this checkpoint from any other of the same name.
        name: The checkpoint's directory name.
        report_index: Which report made it; counted through the whole run.
        created: UTC, ISO 8601, microseconds.
        epoch: The driver (epoch record) that committed it.
        attempt: The worker group's life that reported it.
        metrics: Rank 0's metrics as stored JSON (see `worker.metrics`): non-finite floats are tagged.
    """

    format_version: int = FORMAT_VERSION
    id: str = ""
    name: str = ""
    report_index: int = 0
    created: str = ""
    epoch: int = 0
    attempt: int = 0
    world_size: int = 0
    metrics: msgspec.Raw = msgspec.Raw(b"{}")
    files: tuple[StoredFile, ...] = ()


class CommittedCheckpoint(Record, frozen=True):
    """A checkpoint that exists, without its list of files (a run may have thousands).

    Attributes:
        durable: Its bytes are known to survive a loss of power.
    """

    name: str
    id: str
    report_index: int
    created: str
    epoch: int
    attempt: int
    world_size: int
    metrics: msgspec.Raw
    num_files: int
    size_bytes: int
    durable: bool = False


class RetentionPlan(Record, frozen=True):
    """What retention decided: the names to delete, oldest first."""

    delete: tuple[str, ...]


class RunRecord(Record, frozen=True):
    """`run.json`: what a run is. Written once, when the run is made."""

    format_version: int = FORMAT_VERSION
    id: str = ""
    name: str = ""
    created: str = ""
    holdfast_version: str = ""
    configuration: dict[str, str] = {}


class AdoptedCheckpoint(Record, frozen=True):
    """A checkpoint of an earlier epoch that a new driver takes over."""

    name: str
    id: str


class EpochRecord(Record, frozen=True):
    """`epochs/000002.json`: who drives the run, since when, and what it found valid.

    Attributes:
        first_attempt: Attempts of earlier epochs at or above this number are void.
        first_report: The lowest report index that this epoch may use.
        holder: Who drives, as a person wants to read it (user, host, process id).
        nonce: Tells a record that we wrote (and whose answer was lost) from another driver's.
        configuration: As this driver was configured; the newest one's holds for the run.
        process: What tells the driver's process from any other (see `persistence.heartbeat`), or empty.
    """

    format_version: int = FORMAT_VERSION
    epoch: int = 1
    created: str = ""
    holder: str = ""
    nonce: str = ""
    first_attempt: int = 1
    first_report: int = 1
    adopted: tuple[AdoptedCheckpoint, ...] = ()
    configuration: dict[str, str] = {}
    process: str = ""


class Heartbeat(Record, frozen=True):
    """`heartbeat.json`: the last sign of life of a driver, on a store whose locks do not end with their process.

    Attributes:
        epoch: The driver's.
        nonce: The one of its epoch's record.
        count: How often it was renewed; it is the change that shows life.
        released: The driver has ended.
        process: As in `EpochRecord`.
    """

    epoch: int = 0
    nonce: str = ""
    count: int = 0
    released: bool = False
    process: str = ""


class Note(Record, frozen=True):
    """`notes/<checkpoint>.json`: what may change after the commit. Losing one loses no checkpoint.

    Attributes:
        id: The checkpoint's id; a note for another id is stale and ignored.
        damaged: Why recovery skipped it, or None.
        pinned: Retention must not delete it.
        validation: `pending`, `validated`, `failed` or `timeout`; None where none was asked for.
        validation_metrics: Stored JSON that joins the checkpoint's metrics; `null` where there is none.
        validation_error: Why there is none, for a person.
    """

    id: str = ""
    durable: bool = False
    damaged: str | None = None
    pinned: bool = False
    validation: str | None = None
    validation_metrics: msgspec.Raw = msgspec.Raw(b"null")
    validation_error: str | None = None


class ReportLine(Record, frozen=True):
    """One line of the metrics log: a report that every rank made.

    Attributes:
        attempt: None only in what stands for a line of another program, which does not say.
        time: Seconds since the Unix epoch; None as `attempt`.
        checkpoint: The name of the checkpoint it committed, or None.
        metrics: Rank 0's metrics, stored JSON.
        other_ranks: Ranks 1, 2, … in order where one of them reported other metrics than rank 0; else None.
    """

    report: int
    attempt: int | None
    time: float | None
    checkpoint: str | None = None
    metrics: msgspec.Raw = msgspec.Raw(b"{}")
    other_ranks: tuple[msgspec.Raw, ...] | None = None
