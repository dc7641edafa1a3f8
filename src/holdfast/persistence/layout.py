"""Every file name of the storage format, and nothing else knows one.

Keys are relative to the run's directory and `/`-separated. See `docs/design.md`, "Storage format".
"""

from __future__ import annotations

import re
import urllib.parse

from holdfast.errors import ConfigurationError, FormatError

MANIFEST = ".manifest.json"
METADATA = ".metadata.json"
PRIVATE = ".holdfast"
RUN_RECORD = f"{PRIVATE}/run.json"
LOCK = f"{PRIVATE}/lock"
HEARTBEAT = f"{PRIVATE}/heartbeat.json"
CLOCK = f"{PRIVATE}/clock"
EPOCHS = f"{PRIVATE}/epochs"
METRICS = f"{PRIVATE}/metrics"
NOTES = f"{PRIVATE}/notes"
LOGS = f"{PRIVATE}/logs"
PENDING = f"{PRIVATE}/pending"
STAGING = f"{PRIVATE}/staging"

_PARTIAL = re.compile(r"^\.(?P<name>.+)\.partial-(?P<epoch>\d+)\.(?P<attempt>\d+)$", re.DOTALL)
_TRASH = re.compile(r"^\.(?P<name>.+)\.(?:deleting|damaged)-(?P<tag>[0-9a-f]+)$", re.DOTALL)
_CHECKPOINT = re.compile(r"^checkpoint_(\d{6,})$")
_EPOCH = re.compile(r"^(\d{6,})\.json$")
_LOG_DIRECTORY = re.compile(r"^attempt_(\d{6,})$")
_SEGMENT = re.compile(r"^e(\d{6,})-a(\d{6,})-(\d{6,})\.jsonl$")


def checkpoint_name(report_index: int) -> str:
    """The name of a checkpoint whose user gave none."""
    return f"checkpoint_{report_index:06d}"


def parse_checkpoint(name: str) -> int | None:
    """The report index of a checkpoint whose user gave it no name, or None."""
    found = _CHECKPOINT.match(name)
    return int(found[1]) if found else None


def uploaded_name(report_index: int, attempt: int) -> str:
    """The name of a checkpoint that a function of the user's uploads, file by file, to its final place."""
    return checkpoint_name(report_index) if attempt == 1 else f"{checkpoint_name(report_index)}-attempt_{attempt}"


def manifest_key(name: str) -> str:
    """Where the manifest of the checkpoint `name` lies."""
    return f"{name}/{MANIFEST}"


def metadata_key(name: str) -> str:
    """Where the user metadata of the checkpoint `name` lies."""
    return f"{name}/{METADATA}"


def note_key(name: str) -> str:
    """Where the note of the checkpoint `name` lies."""
    return f"{NOTES}/{name}.json"


def pending_key(name: str) -> str:
    """Where a store without rename says that the files at `name` are ours, and being written or deleted.

    Without it nobody could tell a checkpoint's remains from a directory of the user's own.
    """
    return f"{PENDING}/{name}.json"


def staging_key(attempt: int, rank: int, tag: str) -> str:
    """The directory that a worker writes a checkpoint into which is then taken over."""
    return f"{STAGING}/attempt_{attempt:06d}-rank_{rank:05d}-{tag}"


def partial_name(name: str, epoch: int, attempt: int) -> str:
    """The directory that a checkpoint is written into before the rename that commits it."""
    return f".{name}.partial-{epoch}.{attempt}"


def deleting_name(name: str, tag: str) -> str:
    """What a checkpoint is renamed to before its files go: from then on no reader takes it for one."""
    return f".{name}.deleting-{tag}"


def damaged_name(name: str, tag: str) -> str:
    """Where a damaged checkpoint is moved to when its name is needed again."""
    return f".{name}.damaged-{tag}"


def parse_partial(directory: str) -> tuple[str, int, int] | None:
    """`(name, epoch, attempt)` of a partial directory's name, or None."""
    found = _PARTIAL.match(directory)
    return (found["name"], int(found["epoch"]), int(found["attempt"])) if found else None


def is_deleting(directory: str) -> bool:
    """Whether a directory is what an interrupted deletion left."""
    return bool(_TRASH.match(directory)) and ".deleting-" in directory


def is_hidden(directory: str) -> bool:
    """Whether a directory in the run can never be a checkpoint."""
    return directory.startswith(".")


def epoch_key(epoch: int) -> str:
    """Where the record of an epoch lies."""
    return f"{EPOCHS}/{epoch:06d}.json"


def parse_epoch(file_name: str) -> int | None:
    """The epoch of a file name in `epochs/`, or None."""
    found = _EPOCH.match(file_name)
    return int(found[1]) if found else None


def segment_key(epoch: int, attempt: int, segment: int) -> str:
    """Where a segment of the metrics log lies.

    The epoch is part of the name so that a stalled driver, which may count its attempts into numbers that a
    newer driver also uses, never appends to the newer one's file.
    """
    return f"{METRICS}/e{epoch:06d}-a{attempt:06d}-{segment:06d}.jsonl"


def parse_segment(file_name: str) -> tuple[int, int, int] | None:
    """`(epoch, attempt, segment)` of a file name in `metrics/`, or None."""
    found = _SEGMENT.match(file_name)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def log_key(attempt: int, rank: int) -> str:
    """Where the output of one rank in one attempt is kept."""
    return f"{LOGS}/attempt_{attempt:06d}/rank_{rank:05d}.log"


def validation_log_key(name: str) -> str:
    """Where the output of a checkpoint's validation is kept."""
    return f"{LOGS}/validation/{name}.log"


def log_part_key(key: str, part: int) -> str:
    """Where a log that fills more than one object goes on; part 0 is the log itself."""
    return f"{key}.{part}" if part else key


def log_end_key(key: str) -> str:
    """Where the last lines of a log are, in a store that cannot append."""
    return f"{key}.end"


def parse_log_directory(directory: str) -> int | None:
    """The attempt of a directory name in `logs/`, or None."""
    found = _LOG_DIRECTORY.match(directory)
    return int(found[1]) if found else None


def check_name(name: str, what: str) -> str:
    """Returns `name` if it can name a directory of a run or checkpoint.

    Args:
        what: How the name is called in the error, e.g. `RunConfig.name`.

    Raises:
        ConfigurationError: It is empty, too long, hidden, or holds a slash, backslash or control character.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"{what} must be a text, not {type(name).__name__}: {name!r}")
    bad = next((c for c in name if c in "/\\" or ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF), None)
    if bad is not None:
        raise ConfigurationError(
            f"{what} {name!r} holds {bad!r}; it names one directory, so use letters, digits, '.', '_' and '-'"
        )
    if not name or name.startswith("."):
        raise ConfigurationError(f"{what} {name!r} must not be empty or begin with a dot")
    if len(name.encode()) > 200:
        raise ConfigurationError(f"{what} {name[:40]!r}… is longer than 200 bytes")
    return name


def encode_path(path: str) -> str:
    """A record path for a relative path of the file system (which may hold any bytes, as surrogates).

    Bytes that are no UTF-8 become `%XX`, and so `%` becomes `%25`; all else stays readable.
    """
    if "%" not in path and path.isascii():
        return path
    out = []
    for char in path:
        if char == "%":
            out.append("%25")
        elif 0xDC80 <= ord(char) <= 0xDCFF:
            out.append(f"%{ord(char) - 0xDC00:02X}")
        else:
            out.append(char)
    return "".join(out)


def decode_path(path: str) -> str:
    """The file system's path (surrogate-escaped) for a record path."""
    if "%" not in path:
        return path
    return urllib.parse.unquote_to_bytes(path.encode()).decode("utf-8", "surrogateescape")


def check_record_path(path: str, where: str) -> str:
    """Returns a record path that came from storage, if following it stays below its root.

    A manifest is untrusted input: whoever can write to the store must not thereby write elsewhere.

    Raises:
        FormatError: The path is absolute, empty, has `.` or `..` or empty parts, or a NUL byte.
    """
    decoded = decode_path(path)
    parts = decoded.split("/")
    if not decoded or "\0" in decoded or any(part in ("", ".", "..") for part in parts):
        raise FormatError(f"{where} lists the path {path!r}, which does not stay inside the checkpoint")
    return path
