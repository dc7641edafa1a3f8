"""The measures of "Training does not wait": what a checkpoint costs the loop that goes on beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from benchmarks.disk import fresh_ext4
from benchmarks.measure import GIB, MIB, Limit, Measure, Place, Sample
from benchmarks.side import Side

_STATE = ("64", str(16 * MIB))
"""The state that is saved: so many tensors of so many bytes, 1 GiB together."""


def _each(us: Side, peer: Side | None) -> Iterable[tuple[str, Side]]:
    yield "ours", us
    if peer is not None:
        yield "peer", peer


def _each_of_state(us: Side, peer: Side | None, *others: tuple[str, Side]) -> Iterable[tuple[str, Side]]:
    yield "ours", us
    yield from others
    if peer is not None:
        yield "dcp", peer.named("dcp")
        yield "orbax", peer.named("orbax")


def _calls(
    sizes: Mapping[str, tuple[int, int, int]], place: Place = nullcontext
) -> Callable[[Side, Side | None], Sample]:
    """Calls by the names of their figures: number of files, bytes of each, calls."""

    def sample(us: Side, peer: Side | None) -> Sample:
        found = {}
        for whose, side in _each(us, peer):
            with place() as parent:
                arguments = [":".join(map(str, size)) for size in sizes.values()]
                times = side.run("async_call.py", *arguments, parent=parent).times
            for name, calls in zip(sizes, times, strict=True):
                found[f"{whose}{name}_ms"] = statistics.median(calls) * 1000
        return found

    return sample


def _staged(us: Side, peer: Side | None) -> Sample:
    found = {}
    copies: list[float] = []
    for whose, side in _each(us, peer):
        times = side.run("staged.py", str(GIB), "4").times
        found[f"{whose}_s"] = statistics.median(times["committed_s"])
        copies += times["cp_s"]
    return found | {"cp_s": statistics.median(copies)}


def _beside(us: Side, peer: Side | None) -> Sample:
    found: dict[str, float] = {}
    for whose, side in _each(us, peer):
        times = side.run("beside.py", "100", str(41 * MIB), "2").times
        found |= _of_steps(whose, times["report"])
        if side is us:
            found |= _of_steps("cp", times["cp"])
            found["ours_beyond_cp"] = found["ours_ratio"] - found["cp_ratio"]
    for whose, side in _each_of_state(us, peer):
        found |= _of_steps(f"{whose}_state", side.run("beside_state.py", *_STATE, "3").times)
    return found


def _of_steps(whose: str, found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {f"{whose}_{figure}": statistics.median(each[figure] for each in found) for figure in ("ratio", "lost_s")}


def _state(side: Side, what: str, repeats: int) -> Any:
    return side.run("state.py", *_STATE, str(repeats), what).times


def _state_wait(us: Side, peer: Side | None) -> Sample:
    found = {}
    for whose, side in _each_of_state(us, peer):
        times = _state(side, "wait", 8)
        found[f"{whose}_s"] = statistics.median(times["wait_s"])
        found[f"{whose}_first_s"] = times["first_wait_s"]
        if side is us:
            found["memcpy_s"] = statistics.median(times["memcpy_s"])
    return found


def _state_persist(us: Side, peer: Side | None) -> Sample:
    others = [("ours_strict", us.named("holdfast_strict"))]
    if peer is not None:
        others.append(("dcp_unsynced", peer.named("dcp_unsynced")))
    return {
        f"{whose}_gib_per_s": 1 / statistics.median(_state(side, "persist", 4)["committed_s"])
        for whose, side in _each_of_state(us, peer, *others)
    }


def _unchanged(us: Side, peer: Side | None) -> Sample:
    found = {}
    for whose, side in _each(us, peer):
        times = side.run("unchanged.py", "10", str(100 * MIB), "3").times
        for which in ("first", "second"):
            found[f"{whose}_{which}_s"] = statistics.median(each["committed_s"] for each in times[which])
            found[f"{whose}_{which}_mib"] = statistics.median(each["used_bytes"] for each in times[which]) / MIB
    return found


def _kept(us: Side, _: Side | None) -> Sample:
    files = ("8", str(GIB // 8))
    kept = us.run("kept.py", *files, "default").times
    fetched = us.run("kept.py", *files, "0").times
    return {
        "ours_s": kept["ready_s"],
        "ours_fetched_mib": kept["fetched_bytes"] / MIB,
        "ours_fetch_s": fetched["ready_s"],
        "ours_fetch_fetched_mib": fetched["fetched_bytes"] / MIB,
    }


_SIZES = {
    "_1mib": (1, MIB, 10),
    "_100mib": (10, 10 * MIB, 10),
    "_1gib": (1, GIB, 5),
    "_4gib": (100, 41 * MIB, 5),
}

ASYNC_MEASURES: tuple[Measure, ...] = (
    Measure(
        "async_call",
        "Time lost in an ASYNC report of 1 MiB in 1 file, 100 MiB in 10, 1 GiB in 1, 4 GiB in 100",
        _calls(_SIZES),
        tuple(Limit(f"ours{name}_ms", at_most=2) for name in _SIZES),
    ),
    Measure(
        "async_many",
        "Time lost in an ASYNC report of 5,000 files of 4 KiB, on an ext4 with a journal",
        _calls({"": (5000, 4096, 5)}, fresh_ext4),
        (Limit("ours_ms", at_most=60),),
    ),
    Measure(
        "staged",
        "SYNC report of 1 GiB from `staging_directory()`, on the same file system",
        _staged,
        (Limit("ours_s", at_most=1 / 3, of="cp_s"),),
    ),
    Measure(
        "beside",
        "Steps of a training loop while 4 GiB in 100 files (`_state`: 1 GiB of tensors) are stored beside it, "
        "by undisturbed steps",
        _beside,
        (
            Limit("ours_beyond_cp", at_most=0.05),
            Limit("ours_ratio", at_most=1, of="peer_ratio"),
            # As for the files; two loops with nothing beside them differ by 2 %.
            Limit("ours_state_ratio", at_most=1.05),
            Limit("ours_state_ratio", at_most=1, of="orbax_state_ratio"),
        ),
    ),
    Measure(
        "state_wait",
        "Training waits for `save_state` of 1 GiB of tensors on the CPU, and the ASYNC report of it",
        _state_wait,
        (
            Limit("ours_s", at_most=1.1, of="memcpy_s"),
            Limit("ours_s", at_most=1, of="dcp_s"),
            Limit("ours_s", at_most=1, of="orbax_s"),
        ),
    ),
    Measure(
        "state_persist",
        "The same, from the call to the committed checkpoint",
        _state_persist,
        (
            Limit("ours_gib_per_s", at_least=1, of="dcp_gib_per_s"),
            Limit("ours_gib_per_s", at_least=1, of="orbax_gib_per_s"),
        ),
    ),
    Measure(
        "unchanged",
        "SYNC report of 10 files of 100 MiB, and of the same files with one of them new",
        _unchanged,
        (
            Limit("ours_second_s", at_most=0.2, of="ours_first_s"),
            Limit("ours_second_mib", at_most=0.2, of="ours_first_mib"),
        ),
    ),
    Measure(
        "kept",
        "SIGKILL of a worker whose run is in a bucket, 1 GiB in 8 files: `get_checkpoint()` to the directory of the next attempt",
        _kept,
        (Limit("ours_fetched_mib", at_most=0), Limit("ours_s", at_most=1, of="ours_fetch_s")),
        is_slow=False,
    ),
)
