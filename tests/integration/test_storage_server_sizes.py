"""Many objects, and a large one, on real servers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import xxhash

from holdfast.stores import open_store
from holdfast.testing.store import put

LARGE_BYTES = 6 << 30


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fixture", "count"),
    [
        ("rclone", 10_000),
        ("google", 10_000),
        pytest.param("ceph", 10_000, marks=pytest.mark.slow),
        ("azurite", 600),  # it deletes more slowly the more there are, and breaks connections in the end
    ],
)
def test_many_objects_under_one_prefix_are_listed_and_deleted(request, monkeypatch, fixture, count):
    server = request.getfixturevalue(fixture)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(server.url(server.make_bucket(), "run"))
    keys = [f"many/{number % 10}/ein Übungsname {number}" for number in range(count)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.write(key, b"x"), keys))
    store.write("many.txt", b"")
    assert sorted(entry.key for entry in store.list("many", recursive=True)) == sorted(keys)
    assert {entry.key for entry in store.list("many")} == {f"many/{number}" for number in range(10)}
    assert len(list(store.list("many/3"))) == count // 10
    store.delete_tree("many")
    assert [entry.key for entry in store.list(recursive=True)] == ["many.txt"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fixture", ["rclone", "azurite"])  # the others here keep everything in memory
def test_an_object_larger_than_any_single_request_may_be(request, monkeypatch, tmp_path, fixture):
    server = request.getfixturevalue(fixture)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # To complete the upload, rclone's server copies all of it: that may take longer than a request usually does.
    store = open_store(server.url(server.make_bucket(), "run", request_timeout="300"))
    source = tmp_path / "large"
    with source.open("wb") as file:
        for position in (0, 5 << 30, LARGE_BYTES - 4096):
            file.seek(position)
            file.write(os.urandom(4096))
    written, read = xxhash.xxh3_128(), xxhash.xxh3_128()
    put(store, "large", tmp_path, None, source=source, hasher=written)
    with store.open_read("large") as file:
        while data := file.read(8 << 20):
            read.update(data)
        file.seek(-4096, os.SEEK_END)
        assert len(file.read()) == 4096
    assert written.digest() == read.digest()
    store.delete("large")
    assert not store.exists("large")
