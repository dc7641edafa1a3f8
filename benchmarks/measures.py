"""The measures of the table in docs/benchmarks.md, each the same job on both sides."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from benchmarks.disk import fresh_ext4
from benchmarks.measure import GIB, NO_POLLING, Limit, Measure, Place, Sample
from benchmarks.measures_async import ASYNC_MEASURES
from benchmarks.measures_frameworks import FRAMEWORK_MEASURES
from benchmarks.measures_objects import OBJECT_MEASURES
from benchmarks.side import JOBS, Side


def _ddp_once(us: Side, peer: Side | None) -> Sample:
    own = us.run("ddp_once.py").usage
    torchrun = us.command("-m", "torch.distributed.run", "--nproc_per_node", "2", str(JOBS / "torchrun_once.py"))
    found = {
        "ours_s": own.wall_s,
        "ours_cpu_s": own.cpu_s,
        "torchrun_s": torchrun.wall_s,
        "torchrun_cpu_s": torchrun.cpu_s,
    }
    if peer is not None:
        other = peer.run("ddp_once.py").usage
        found |= {"peer_s": other.wall_s, "peer_cpu_s": other.cpu_s}
    return found


def _plain_start(us: Side, peer: Side | None) -> Sample:
    found = {"ours_s": us.run("plain_start.py", "1").usage.wall_s}
    found["ours_second_fit_first_line_s"] = us.run("plain_start.py", "2").times[1]["first_line_s"]
    if peer is not None:
        other = peer.run("plain_start.py", "2")
        found["peer_second_fit_first_line_s"] = other.times[1]["first_line_s"]
        found["peer_s"] = other.usage.wall_s - other.times[1]["fit_s"]
    return found


def _memory(us: Side, peer: Side | None) -> Sample:
    found = {}
    for whose, side in (("ours", us), ("peer", peer)):
        if side is not None:
            held = side.look("ddp_once.py")
            found[f"{whose}_mib"] = held.pss_mib
            found[f"{whose}_processes"] = float(held.num_processes)
            found[f"{whose}_threads"] = float(held.num_threads)
    return found


def _speed(times: Sequence[float], prefix: str) -> dict[str, float]:
    """Reports a second and the slowest in a hundred, without the first ones, which also wait for the slower rank."""
    steady = sorted(times[len(times) // 10 :])
    p99 = steady[min(len(steady) - 1, int(len(steady) * 0.99))]
    return {f"{prefix}_per_s": len(steady) / sum(steady), f"{prefix}_p99_ms": p99 * 1000}


def _reports(
    num_ours: int, num_peer: int, num_peer_unpolled: int, checkpoints: str, place: Place = nullcontext
) -> Callable[[Side, Side | None], Sample]:
    def speed(side: Side, prefix: str, count: int, variables: Mapping[str, str] | None = None) -> dict[str, float]:
        with place() as parent:
            times = side.run("reports.py", str(count), checkpoints, variables=variables, parent=parent).times
        return _speed(times, prefix)

    def sample(us: Side, peer: Side | None) -> Sample:
        found = speed(us, "ours", num_ours)
        if peer is not None:
            found |= speed(peer, "peer", num_peer)
            found |= speed(peer, "peer_unpolled", num_peer_unpolled, NO_POLLING)
        return found

    return sample


def _growth(us: Side, peer: Side | None) -> Sample:
    """The tenth checkpoint that is kept against the last of many."""
    found = {}
    for whose, side, count in (("ours", us, 3000), ("peer_unpolled", peer, 1000)):
        if side is not None:
            times = side.run(
                "reports.py", str(count), "keepall", variables=None if whose == "ours" else NO_POLLING
            ).times
            found[f"{whose}_10th_ms"] = statistics.median(times[5:25]) * 1000
            found[f"{whose}_{count}th_ms"] = statistics.median(times[-20:]) * 1000
    return found


def _killed(us: Side, peer: Side | None) -> Sample:
    found = {"ours_s": us.run("killed.py").times["restart_s"]}
    if peer is not None:
        found["peer_s"] = peer.run("killed.py").times["restart_s"]
    return found


def _bulk(num_files: int, file_bytes: int, place: Place = nullcontext) -> Callable[[Side, Side | None], Sample]:
    def times_of(side: Side, variables: Mapping[str, str] | None = None) -> Any:
        with place() as parent:
            return side.run("bulk.py", str(num_files), str(file_bytes), "4", variables=variables, parent=parent).times

    def sample(us: Side, peer: Side | None) -> Sample:
        own = times_of(us)
        copies = list(own["cp_s"])
        found = {"ours_s": statistics.median(own["committed_s"])}
        if peer is not None:
            other = times_of(peer)
            found["peer_s"] = statistics.median(other["committed_s"])
            unpolled = times_of(peer, NO_POLLING)
            found["peer_unpolled_s"] = statistics.median(unpolled["committed_s"])
            found["peer_call_alone_s"] = statistics.median(other["call_s"] + unpolled["call_s"])
            copies += other["cp_s"] + unpolled["cp_s"]
        found["cp_s"] = statistics.median(copies)
        return found

    return sample


MEASURES: tuple[Measure, ...] = (
    Measure(
        "ddp",
        "A 2-worker TorchTrainer script (DDP, one step, one report), process start to exit",
        _ddp_once,
        (Limit("ours_s", at_most=0.3, of="peer_s"), Limit("ours_s", at_most=1.0, of="torchrun_s")),
    ),
    Measure(
        "plain",
        "The same without torch, start to exit; and a second `fit()` in that process, to its first line",
        _plain_start,
        (Limit("ours_s", at_most=0.6), Limit("ours_second_fit_first_line_s", at_most=0.2)),
    ),
    Measure(
        "memory",
        "Memory of the DDP job, all processes (PSS), and their number",
        _memory,
        (Limit("ours_mib", at_most=0.25, of="peer_mib"), Limit("ours_processes", at_most=4)),
    ),
    Measure(
        "metrics",
        "Reports of metrics alone, 2 workers, default settings",
        _reports(20_000, 12, 500, "none"),
        (Limit("ours_per_s", at_least=5000), Limit("ours_p99_ms", at_most=2)),
    ),
    Measure(
        "small",
        "Reports with a 1 KiB checkpoint, the newest 2 kept, on an ext4 with a journal",
        _reports(3000, 12, 300, "keep2", fresh_ext4),
        (Limit("ours_per_s", at_least=500),),
    ),
    Measure(
        "small_here",
        "The same on this machine's own ext4, which has no journal",
        _reports(3000, 12, 300, "keep2"),
        (Limit("ours_per_s", at_least=500),),
    ),
    Measure(
        "growth",
        "A report with a 1 KiB checkpoint, all kept: the 10th against the last",
        _growth,
        # What is equal varies by this much from run to run.
        (Limit("ours_3000th_ms", at_most=1.25, of="ours_10th_ms"),),
    ),
    Measure(
        "killed",
        "SIGKILL of a DDP worker to the first line of the function in the next attempt",
        _killed,
        (Limit("ours_s", at_most=0.4),),
    ),
    Measure(
        "large",
        "SYNC report of 1 GiB to the same file system, source kept, digest included",
        _bulk(1, GIB),
        (Limit("ours_s", at_most=1.15, of="cp_s"), Limit("ours_s", at_most=1.0, of="peer_s")),
    ),
    Measure(
        "many",
        "SYNC report of 5,000 files of 4 KiB, on an ext4 with a journal",
        _bulk(5000, 4096, fresh_ext4),
        (Limit("ours_s", at_most=0.5, of="peer_s"),),
    ),
    *ASYNC_MEASURES,
    *OBJECT_MEASURES,
    *FRAMEWORK_MEASURES,
)
