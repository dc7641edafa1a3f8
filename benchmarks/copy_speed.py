"""What storing a file costs beside `cp`: `python -m benchmarks.copy_speed [--size-mib 1024] [DIRECTORY]`.

Both copy the same warm file to the same file system; ours also digests it. Medians of five, interleaved.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from holdfast.persistence.digest import FileHasher
from holdfast.persistence.staging import stage
from holdfast.persistence.upload import Uploader
from holdfast.stores.local import LocalStore

ROUNDS = 5
SMALL_FILES = 5000
SMALL_BYTES = 4096
CHUNK_BYTES = 16 * 1024 * 1024


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def put(store: LocalStore, key: str, source: Path) -> None:
    descriptor = os.open(source, os.O_RDONLY)
    try:
        size_bytes = os.fstat(descriptor).st_size
        store.put_file(key, descriptor, size_bytes=size_bytes, mode=0o644, hasher=FileHasher())
    finally:
        os.close(descriptor)


def measure_large(place: Path, size_mib: int) -> None:
    source = place / "large"
    with source.open("wb") as file:
        for _ in range(size_mib * 1024 * 1024 // CHUNK_BYTES):
            file.write(os.urandom(CHUNK_BYTES))
    store = LocalStore(place / "store")
    store.prepare()
    target = store.local_path("copy")
    times: dict[str, list[float]] = {"cp": [], "ours": []}
    for _ in range(ROUNDS + 1):
        times["cp"].append(timed(lambda: subprocess.run(["cp", "--reflink=never", source, target], check=True)))
        store.delete("copy")
        times["ours"].append(timed(lambda: put(store, "copy", source)))
        store.delete("copy")
    source.unlink()
    cp_s, ours_s = (statistics.median(values[1:]) for values in times.values())
    print(f"{size_mib} MiB in one file: cp {cp_s:.3f} s, ours with digest {ours_s:.3f} s, {ours_s / cp_s:.2f} x cp")


def measure_small(place: Path) -> None:
    source = place / "small"
    source.mkdir()
    for number in range(SMALL_FILES):
        (source / f"{number}").write_bytes(os.urandom(SMALL_BYTES))
    store = LocalStore(place / "store")
    uploader = Uploader()
    times: dict[str, list[float]] = {"cp": [], "ours": []}
    for number in range(ROUNDS + 1):
        # Nothing is deleted in between: ext4 is slow to reuse the inodes of files that were deleted just now.
        target = store.local_path(f"cp-{number}")
        times["cp"].append(timed(lambda target=target: subprocess.run(["cp", "-r", source, target], check=True)))  # type: ignore[misc]
        times["ours"].append(
            timed(lambda key=f"ours-{number}": uploader.store_shard(stage(source, 0), store, key).result())  # type: ignore[misc]
        )
    uploader.close()
    cp_s, ours_s = (statistics.median(values[1:]) for values in times.values())
    print(f"{SMALL_FILES} files of 4 KiB: cp {cp_s:.3f} s, ours with digest {ours_s:.3f} s, {ours_s / cp_s:.2f} x cp")


def measure_one(place: Path) -> None:
    source = place / "one"
    source.mkdir()
    (source / "a").write_bytes(b"x" * 1024)
    store = LocalStore(place / "store")
    store.make_directory("one")
    shard = stage(source, 0)
    uploader = Uploader()
    times = []
    for _ in range(2000):
        times.append(timed(lambda: uploader.store_shard(shard, store, "one").result()))
        store.delete("one/a")
    uploader.close()
    print(f"one file of 1 KiB through the uploader: {statistics.median(times) * 1e6:.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", default=None)
    parser.add_argument("--size-mib", type=int, default=1024)
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="holdfast-copy-speed-", dir=arguments.directory))
    try:
        measure_large(place, arguments.size_mib)
        measure_small(place)
        measure_one(place)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
