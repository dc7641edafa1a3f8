"""The files that Transformers wrote for one checkpoint, and which of them a rank reports."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Of a file: inode, size in bytes, time of modification in nanoseconds. One that was written again has another.
Trace = tuple[int, int, int]

# Files of which each rank writes its own, with its number: of DeepSpeed, and of `torch.distributed.checkpoint` and Accelerate for FSDP.
_SHARD = re.compile(r"(?:^|/)(?:__|(?:bf16_|fp16_)?zero_pp_rank_|[^/]*fsdp[^/]*_rank)(\d+)[^/]*$")
_RANDOM_STATE = re.compile(r"^rng_state_(\d+)\.pth$")


@dataclass(frozen=True)
class Place:
    """Where a rank stands.

    Attributes:
        first_rank: The lowest rank on this rank's node.
        num_ranks: How many there are on it.
    """

    rank: int
    first_rank: int
    num_ranks: int


def traces(directory: str) -> dict[str, Trace]:
    """Every file below a directory, by its path in it; empty where there is none."""
    return dict(_walk(directory, ""))


def share_of(place: Place, files: Mapping[str, Trace], seen_by_first: Mapping[str, Trace]) -> list[str]:
    """The paths that one rank reports, so that the ranks together report each file once.

    A node's first rank reports what lies on it. Where ranks have written shards, each reports those that have its number: they are handed
    over side by side. Whose number a file has is only a matter of who carries it; none is left out for its name.

    Args:
        files: What lies in this node's directory.
        seen_by_first: What rank 0 finds in its own. It is not reported from other nodes, whether they see the same directory or have
            files of the same names in one of their own.
    """
    if place.first_rank != 0:
        files = {path: trace for path, trace in files.items() if path not in seen_by_first}
    are_sharded = any(_SHARD.search(path) for path in files)
    return sorted(path for path in files if _carrier(place, path, are_sharded=are_sharded) == place.rank)


def _carrier(place: Place, path: str, *, are_sharded: bool) -> int:
    named = (_SHARD.search(path) or _RANDOM_STATE.search(path)) if are_sharded else None
    if named is not None and place.first_rank <= int(named[1]) < place.first_rank + place.num_ranks:
        return int(named[1])
    return place.first_rank


def _walk(directory: str, prefix: str) -> Iterator[tuple[str, Trace]]:
    try:
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, (status.st_ino, status.st_size, status.st_mtime_ns)
