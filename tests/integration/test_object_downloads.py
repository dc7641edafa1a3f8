"""Checkpoints fetched from a bucket: large files in parts, small ones many at once, and what ends with a failure."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from holdfast.errors import DamagedCheckpointError, StorageInterruptedError
from holdfast.persistence.download import fetch
from holdfast.persistence.download_parts import FileInParts
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.verify import find_damage
from holdfast.records import Manifest
from holdfast.stores import open_store
from holdfast.stores.base import Store
from holdfast.stores.object_client import Client
from holdfast.stores.object_memory import budget
from holdfast.stores.object_store import ObjectStore
from support.runs import open_run, report
from support.s3_proxy import Fault, Proxy
from support.s3_server import S3Server
from support.waiting import wait_until

LARGE = random.Random(1).randbytes((20 << 20) + 5)
Stored = Callable[[dict[str, bytes]], tuple[Store, Manifest]]


@pytest.fixture
def stored(server: S3Server, bucket: str, proxy: Proxy, tmp_path: Path) -> Stored:
    """Stores a checkpoint past the proxy; it is read through it."""

    def make(files: dict[str, bytes]) -> tuple[Store, Manifest]:
        with contextlib.closing(open_run(open_store(server.url(bucket, "run")))) as writer:
            name = report(writer, tmp_path / "source", files).name
        store = open_store(server.url(bucket, f"run/{name}", port=proxy.port))
        manifest = read_manifest(store)
        assert manifest is not None
        (tmp_path / "out").mkdir()
        return store, manifest

    return make


def client_of(store: Store) -> Client:
    assert isinstance(store, ObjectStore)
    return store._client


def test_a_large_file_comes_in_parts_each_byte_once(stored: Stored, proxy: Proxy, tmp_path: Path) -> None:
    store, manifest = stored({"deep/large": LARGE, "other": LARGE[: 17 << 20], "small": b"1"})
    fetch(store, manifest, tmp_path / "out")
    assert (tmp_path / "out/deep/large").read_bytes() == LARGE
    assert (tmp_path / "out/other").read_bytes() == LARGE[: 17 << 20]
    mode = next(file.mode for file in manifest.files if file.path == "deep/large")
    assert (tmp_path / "out/deep/large").stat().st_mode & 0o777 == mode
    assert proxy.count("GET", "/deep/large") == 3
    assert proxy.count("GET", "/other") == 3


def test_who_only_compares_asks_for_each_byte_once_within_the_same_memory(stored: Stored, proxy: Proxy) -> None:
    store, manifest = stored({"large": LARGE, "other": LARGE[: 17 << 20], "small": b"1"})
    (changed,) = [file for file in manifest.files if file.path == "other"]
    digest = f"{(changed.digest or '')[:-1]}?"
    altered = [msgspec.structs.replace(file, digest=digest) if file is changed else file for file in manifest.files]
    (damage,) = find_damage(store, "", msgspec.structs.replace(manifest, files=tuple(altered)))
    assert str(damage) == f"other: its content changed: {changed.digest} instead of {digest}"
    assert proxy.count("GET", "/large") == 3
    assert proxy.count("GET", "/other") == 3
    assert budget().try_take(budget().limit_bytes)
    budget().give_back(budget().limit_bytes)


def test_a_part_that_breaks_off_goes_on_where_it_broke(stored: Stored, proxy: Proxy, tmp_path: Path) -> None:
    store, manifest = stored({"large": LARGE})
    for start in (0, 8 << 20):  # whoever asks for the rest of it asks from elsewhere
        proxy.fail(Fault("GET", contains=f"bytes={start}-", cuts_answer_at=3_000_000))
    fetch(store, manifest, tmp_path / "out")
    assert (tmp_path / "out/large").read_bytes() == LARGE
    asked = [tuple(map(int, span.split("-"))) for span in proxy.ranges if span]
    assert len(asked) == 3 + 2
    # Behind what had come, which is less than was sent by what the connection had not given yet.
    rest = [(start, end) for start, end in asked if start % (8 << 20)]
    assert len(rest) == 2
    assert all(
        (end + 1 == len(LARGE) or (end + 1) % (8 << 20) == 0) and start % (8 << 20) <= 3_000_000 for start, end in rest
    )


def test_a_server_without_parts_is_asked_for_the_whole_file(stored: Stored, proxy: Proxy, tmp_path: Path) -> None:
    store, manifest = stored({"large": LARGE, "other": LARGE})
    proxy.fail(Fault("GET", times=-1, drops_header="range"))
    fetch(store, manifest, tmp_path / "out")
    assert (tmp_path / "out/large").read_bytes() == (tmp_path / "out/other").read_bytes() == LARGE
    assert not store.capabilities.parts
    # What it does is known by now.
    (tmp_path / "again").mkdir()
    before = proxy.count("GET", "/large")
    fetch(store, manifest, tmp_path / "again")
    assert proxy.count("GET", "/large") == before + 1
    assert (tmp_path / "again/large").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("becomes", "told"),
    [
        (LARGE[:-1] + bytes([LARGE[-1] ^ 1]), "its content changed"),
        (LARGE[:-1], f"{len(LARGE) - 1} bytes instead of {len(LARGE)}"),
        (b"", f"0 bytes instead of {len(LARGE)}"),
        (None, "missing"),
    ],
)
def test_a_large_file_that_is_another_one_is_damaged(
    stored: Stored, becomes: bytes | None, told: str, tmp_path: Path
) -> None:
    store, manifest = stored({"large": LARGE})
    store.delete("large")
    if becomes is not None:
        store.write("large", becomes)
    with pytest.raises(DamagedCheckpointError, match=re.escape(told)):
        fetch(store, manifest, tmp_path / "out")


@pytest.mark.parametrize("digest", [None, "newer-algorithm:00"])
def test_a_file_that_nothing_compares_is_never_parts_of_two_objects(
    stored: Stored, digest: str | None, tmp_path: Path
) -> None:
    store, manifest = stored({"large": LARGE})
    (file,) = manifest.files
    assert FileInParts.suits(store, file)
    unknown = msgspec.structs.replace(file, digest=digest)
    assert not FileInParts.suits(store, unknown)
    fetch(store, msgspec.structs.replace(manifest, files=(unknown,)), tmp_path / "out")
    assert (tmp_path / "out/large").read_bytes() == LARGE


def test_a_small_file_that_has_grown_is_not_cut_off(stored: Stored, tmp_path: Path) -> None:
    store, manifest = stored({"small": b"1" * 1000})
    (file,) = manifest.files
    store.write("small", b"2" * 2000)
    without_digest = msgspec.structs.replace(manifest, files=(msgspec.structs.replace(file, digest=None),))
    with pytest.raises(DamagedCheckpointError, match="2000 bytes instead of 1000"):
        fetch(store, without_digest, tmp_path / "out")


def test_what_was_asked_for_ends_with_the_download(stored: Stored, proxy: Proxy, tmp_path: Path) -> None:
    store, manifest = stored({f"file-{number}": bytes([number]) for number in range(10)})
    store.delete("file-0")
    proxy.fail(Fault("GET", contains="/file-0", times=1))
    proxy.fail(Fault("GET", contains="/file-", times=-1, stalls=True))
    with pytest.raises(DamagedCheckpointError, match="file-0: missing"):
        fetch(store, manifest, tmp_path / "out")
    calls = client_of(store).calls
    wait_until(lambda: not calls._open, "no request waits for its answer")
    assert proxy.count("GET", "/file-") <= 10


def test_a_part_that_is_broken_off_is_not_taken_for_refused(stored: Stored, proxy: Proxy, tmp_path: Path) -> None:
    store, manifest = stored({"large": LARGE})
    proxy.fail(Fault("GET", contains="/large", times=-1, stalls=True))
    store.hurry()
    try:
        with pytest.raises(StorageInterruptedError):
            fetch(store, manifest, tmp_path / "out")
    finally:
        store.hurry(on=False)
    assert proxy.count("GET", "/large") <= 3  # nobody asked for the whole file after that


def test_small_files_are_fetched_whatever_the_server_makes_of_ranges(
    stored: Stored, proxy: Proxy, tmp_path: Path
) -> None:
    files = {f"{number:02}": bytes([number]) * number for number in range(60)}
    store, manifest = stored(files)
    fetch(store, manifest, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    proxy.fail(Fault("GET", times=-1, drops_header="range"))
    (tmp_path / "again").mkdir()
    fetch(store, manifest, tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in files} == files
    # What it does is known by now: one request a file.
    (tmp_path / "third").mkdir()
    before = proxy.count("GET")
    fetch(store, manifest, tmp_path / "third")
    assert proxy.count("GET") == before + len(files) + 2  # the manifest, and the user's metadata that there are none of


def test_the_error_of_one_file_ends_the_waits_for_the_others(stored: Stored, proxy: Proxy, tmp_path: Path) -> None:
    store, manifest = stored({"large": LARGE, "other": LARGE[: 1 << 20]})
    store.delete("other")
    proxy.fail(Fault("GET", contains="/large", times=-1, stalls=True))
    with pytest.raises(DamagedCheckpointError, match="other: missing"):
        fetch(store, manifest, tmp_path / "out")
    calls = client_of(store).calls
    wait_until(lambda: not calls._open, "no request waits for its answer")
