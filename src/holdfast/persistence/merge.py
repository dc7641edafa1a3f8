"""One checkpoint out of what several ranks stored: the same name is one file, or it is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from holdfast.errors import ShardCollisionError
from holdfast.persistence import layout
from holdfast.records import ShardReceipt, StoredFile


def merge_receipts(receipts: Iterable[ShardReceipt]) -> tuple[StoredFile, ...]:
    """The files of a checkpoint, sorted by path, from what every rank stored.

    What several ranks stored with equal content is listed once, under the lowest rank.

    Raises:
        ShardCollisionError: Two ranks stored different content under one path, or one's file is the other's directory.
    """
    ordered = sorted(receipts, key=lambda receipt: receipt.rank)
    if len(ordered) == 1:
        return tuple(sorted(ordered[0].files, key=lambda file: file.path))
    merged: dict[str, StoredFile] = {}
    for receipt in ordered:
        for file in receipt.files:
            first = merged.setdefault(file.path, file)
            if first is not file and not _same_content(first, file):
                raise ShardCollisionError(
                    f"ranks {first.rank} and {file.rank} both reported {layout.decode_path(file.path)!r}, with "
                    f"different content ({_describe(first)}; {_describe(file)}); give each rank's file a name of its "
                    f"own, e.g. with the rank in it, or report it from one rank"
                )
    return tuple(_drop_parents(merged))


def merge_metadata(receipts: Iterable[ShardReceipt]) -> str | None:
    """The user metadata of the lowest rank that has some (JSON text), or None."""
    having = [receipt for receipt in receipts if receipt.metadata is not None]
    return min(having, key=lambda receipt: receipt.rank).metadata if having else None


def _drop_parents(merged: Mapping[str, StoredFile]) -> list[StoredFile]:
    """The files in order; an empty directory of one rank that another rank filled goes without saying."""
    filled: set[str] = set()
    for path, file in merged.items():
        parent, _, _ = path.rpartition("/")
        while parent and parent not in filled:
            above = merged.get(parent)
            if above is not None and above.kind != "directory":
                raise ShardCollisionError(
                    f"rank {above.rank} reported {layout.decode_path(parent)!r} as a {above.kind} and rank {file.rank} "
                    f"as a directory that holds {layout.decode_path(path)!r}; give one of them another name"
                )
            filled.add(parent)
            parent, _, _ = parent.rpartition("/")
    return [merged[path] for path in sorted(merged) if path not in filled]


def _same_content(one: StoredFile, other: StoredFile) -> bool:
    if one.kind != other.kind or one.size_bytes != other.size_bytes or one.target != other.target:
        return False
    # A digest is absent only where files were registered in place: then both ranks name one and the same object.
    return one.digest == other.digest or one.digest is None or other.digest is None


def _describe(file: StoredFile) -> str:
    if file.kind == "symlink":
        return f"rank {file.rank}: a link to {layout.decode_path(file.target or '')!r}"
    if file.kind == "directory":
        return f"rank {file.rank}: a directory"
    return f"rank {file.rank}: {file.size_bytes} bytes, {file.digest or 'no digest'}"
