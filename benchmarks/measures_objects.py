"""The measures of a run in a bucket: what it costs to bring a checkpoint there and back, beside what others have for that."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.measure import GIB, MIB, Limit, Measure, Sample
from benchmarks.object_clients import Client, Shape, Took, remove, running_client
from benchmarks.object_server import BUCKET, ObjectServer, running_server
from benchmarks.process import JobError, job_directory
from benchmarks.side import Side
from servers.link import CONNECTION_BYTES_PER_S, LATENCY_S

_ROUNDS = 3
_CALL_ROUNDS = 8
_STORAGE = f"s3://{BUCKET}/runs"
_MEMORY_MIB = 256 + 64
"""What transfers may take at once by default, and what else a process needs."""

_SERVED = ("ours", "peer")
"""Of whose transfers it is told what they cost the server, which has the same cores: no client makes that shorter."""

_IN_MEMORY = Path("/dev/shm")

_MANY, _ONE, _EIGHT = Shape(2000, 16 << 10), Shape(1, 512 * MIB), Shape(8, 64 * MIB)
# Over a link less of it: some would need minutes for all.
_FAR_MANY, _FAR_ONE, _FAR_EIGHT = Shape(500, 16 << 10), Shape(1, 256 * MIB), Shape(8, 32 * MIB)
_FAR_ROUNDS = 1
"""There the link decides, which is as fast in each."""
_WHERE = "Ceph's RADOS Gateway, in memory"
_FAR = f"the same, over a link of {LATENCY_S * 1000:.0f} ms and {CONNECTION_BYTES_PER_S / 1e6:.3g} MB/s a connection"


def _sides(us: Side, peer: Side | None, shape: Shape, *, is_far: bool = False) -> dict[str, Side]:
    """Each library by whose its figures are. `raw` is what ours is made with, alone."""
    found = {"ours": us, "raw": us.named("obstore")}
    if peer is not None:
        found |= {"peer": peer.named("ray"), "s3fs": peer.named("s3fs"), "boto3": peer.named("boto3")}
        if shape.is_large and not is_far:
            found["dcp"] = peer.named("dcp")
    return found


@contextmanager
def _clients(
    sides: Mapping[str, Side], shape: Shape, parent: Path | None = None, *, is_far: bool = False
) -> Iterator[tuple[ObjectServer, list[Client], Path]]:
    with job_directory(parent) as directory, ExitStack() as stack:
        place = directory / "server"
        place.mkdir()
        running = stack.enter_context(running_server(place, is_far=is_far))
        shape.write(directory / "source")
        clients = [
            stack.enter_context(running_client(whose, side, directory, _STORAGE, shape, running))
            for whose, side in sides.items()
        ]
        yield running, clients, directory


def _up(shape: Shape, *, is_far: bool = False) -> Callable[[Side, Side | None], Sample]:
    def sample(us: Side, peer: Side | None) -> Sample:
        sides = _sides(us, peer, shape, is_far=is_far)
        with _clients(sides, shape, is_far=is_far) as (running, clients, directory):
            took = {client.whose: Took() for client in clients}
            for number, client, is_warm in _turns(clients, _FAR_ROUNDS if is_far else _ROUNDS):
                shape.change(directory / "source")
                os.sync()
                name = f"{client.whose}-{number}"
                client.do("up", name, directory / "source", took[client.whose] if is_warm else None)
                place = "runs/objects" if client.whose == "ours" else f"runs/{name}"
                if running.size_bytes(place) < shape.size_bytes:
                    raise JobError(f"{client.whose} said that everything is stored, and it is not")
                client.do("tidy")
                if shape.is_large:  # else it takes no memory to speak of, and more time to delete than to store
                    running.delete(f"runs/{name}")
                    running.forget_deleted()
        return _figures("up", took, shape)

    return sample


def _down(shape: Shape, *, is_far: bool = False) -> Callable[[Side, Side | None], Sample]:
    def sample(us: Side, peer: Side | None) -> Sample:
        # Where files were deleted a moment ago, an ext4 without a journal takes longer to make a small one than a server to send it.
        parent = None if shape.is_large else _IN_MEMORY
        sides = _sides(us, peer, shape, is_far=is_far)
        with _clients(sides, shape, parent, is_far=is_far) as (_, clients, directory):
            took = {client.whose: Took() for client in clients}
            for client in clients:
                client.do("up", client.whose, directory / "source")
            for _, client, is_warm in _turns(clients, _FAR_ROUNDS if is_far else _ROUNDS):
                os.sync()
                target = directory / f"{client.whose}.copy"
                client.do("down", client.whose, target, took[client.whose] if is_warm else None)
                if client.whose != "dcp":  # it brings tensors back, and no files
                    shape.check(directory / "source", target)
                client.do("tidy")
                remove(target)
        return _figures("down", took, shape)

    return sample


def _turns(clients: Sequence[Client], rounds: int) -> Iterator[tuple[int, Client, bool]]:
    """Who is next, and whether it counts: the first round warms everything, and each begins a round in its turn."""
    for number in range(rounds + 1):
        shift = number % len(clients)
        for client in (*clients[shift:], *clients[:shift]):
            yield number, client, number > 0


def _figures(what: str, took: Mapping[str, Took], shape: Shape) -> Sample:
    found: dict[str, float] = {}
    for whose, each in took.items():
        found[f"{whose}_{what}_s"] = statistics.median(each.wall_s)
        found[f"{whose}_cpu_s_per_gib"] = statistics.median(each.cpu_s) / shape.size_bytes * GIB
        found[f"{whose}_mib"] = max(each.peak_mib)
        if whose in _SERVED:
            found[f"{whose}_server_cpu_s_per_gib"] = statistics.median(each.server_cpu_s) / shape.size_bytes * GIB
    return found


def _calls(us: Side, _: Side | None) -> Sample:
    found: dict[str, float] = {}
    for name, shape in {"many": _MANY, "one": _ONE, "eight": _EIGHT}.items():
        with _clients({"ours": us}, shape) as (running, clients, directory), ExitStack() as stack:
            local = running_client("ours_local", us, directory, str(directory / "runs"), shape, running)
            clients.append(stack.enter_context(local))
            took = {client.whose: Took() for client in clients}
            for _number, client, is_warm in _turns(clients, _CALL_ROUNDS):
                shape.change(directory / "source")
                os.sync()
                client.do("call", "", directory / "source", took[client.whose] if is_warm else None)
                client.do("tidy")
                if shape.is_large:
                    running.forget_deleted()
        found |= {f"{whose}_{name}_ms": statistics.median(each.wall_s) * 1000 for whose, each in took.items()}
    return found


_MEMORY = Limit("ours_mib", at_most=_MEMORY_MIB)
_AS_RAW = Limit("ours_down_s", at_most=1.1, of="raw_down_s")


def _ahead(what: str, *others: str) -> tuple[Limit, ...]:
    return tuple(Limit(f"ours_{what}_s", at_most=1, of=f"{other}_{what}_s") for other in others)


def _against_ray(what: str, most: float) -> tuple[Limit, ...]:
    wall = Limit(f"ours_{what}_s", at_most=most, of=f"peer_{what}_s")
    return wall, Limit("ours_cpu_s_per_gib", at_most=most, of="peer_cpu_s_per_gib")


_OTHERS = ("s3fs", "boto3", "dcp")
_FAR_OTHERS = ("s3fs", "boto3")

OBJECT_MEASURES: tuple[Measure, ...] = (
    Measure(
        "s3_many_up",
        f"2,000 files of 16 KiB to a bucket ({_WHERE})",
        _up(_MANY),
        (*_against_ray("up", 0.2), _MEMORY),
    ),
    Measure(
        "s3_many_down",
        f"2,000 files of 16 KiB from a bucket ({_WHERE}), into memory",
        _down(_MANY),
        (*_against_ray("down", 0.4), _AS_RAW, _MEMORY),
    ),
    Measure(
        "s3_one_up",
        f"One file of 512 MiB to a bucket ({_WHERE})",
        _up(_ONE),
        (Limit("ours_up_s", at_most=0.5, of="peer_up_s"), *_ahead("up", *_OTHERS), _MEMORY),
    ),
    Measure(
        "s3_one_down",
        f"One file of 512 MiB from a bucket ({_WHERE})",
        _down(_ONE),
        (Limit("ours_down_s", at_most=0.75, of="peer_down_s"), *_ahead("down", *_OTHERS), _AS_RAW, _MEMORY),
    ),
    Measure(
        "s3_eight_up",
        f"8 files of 64 MiB to a bucket ({_WHERE})",
        _up(_EIGHT),
        (*_ahead("up", "peer", *_OTHERS), _MEMORY),
    ),
    Measure(
        "s3_eight_down",
        f"8 files of 64 MiB from a bucket ({_WHERE})",
        _down(_EIGHT),
        (*_ahead("down", "peer", *_OTHERS), _AS_RAW, _MEMORY),
    ),
    Measure(
        "s3_call",
        f"Time lost in an ASYNC report to a bucket ({_WHERE}) and to a local path: 2,000 files of 16 KiB, one of 512 MiB, 8 of 64 MiB",
        _calls,
        # What is equal varies by this much from run to run.
        tuple(Limit(f"ours_{name}_ms", at_most=1.25, of=f"ours_local_{name}_ms") for name in ("many", "one", "eight")),
        is_slow=False,
    ),
    Measure(
        "far_many_up",
        f"500 files of 16 KiB to a bucket ({_FAR})",
        _up(_FAR_MANY, is_far=True),
        (Limit("ours_up_s", at_most=0.2, of="peer_up_s"), *_ahead("up", "raw", *_FAR_OTHERS), _MEMORY),
    ),
    Measure(
        "far_many_down",
        f"500 files of 16 KiB from a bucket ({_FAR}), into memory",
        _down(_FAR_MANY, is_far=True),
        (Limit("ours_down_s", at_most=0.4, of="peer_down_s"), *_ahead("down", "raw", *_FAR_OTHERS), _MEMORY),
    ),
    Measure(
        "far_one_up",
        f"One file of 256 MiB to a bucket ({_FAR})",
        _up(_FAR_ONE, is_far=True),
        (Limit("ours_up_s", at_most=0.5, of="peer_up_s"), *_ahead("up", *_FAR_OTHERS), _MEMORY),
    ),
    Measure(
        "far_one_down",
        f"One file of 256 MiB from a bucket ({_FAR})",
        _down(_FAR_ONE, is_far=True),
        (Limit("ours_down_s", at_most=0.75, of="peer_down_s"), *_ahead("down", *_FAR_OTHERS), _AS_RAW, _MEMORY),
    ),
    Measure(
        "far_eight_up",
        f"8 files of 32 MiB to a bucket ({_FAR})",
        _up(_FAR_EIGHT, is_far=True),
        (*_ahead("up", "peer", *_FAR_OTHERS), _MEMORY),
    ),
    Measure(
        "far_eight_down",
        f"8 files of 32 MiB from a bucket ({_FAR})",
        _down(_FAR_EIGHT, is_far=True),
        (*_ahead("down", "peer", *_FAR_OTHERS), _AS_RAW, _MEMORY),
    ),
)
