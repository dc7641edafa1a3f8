"""Digests: the same by every way of reading, whole files and parts."""

from __future__ import annotations

import random
import threading

import pytest
import xxhash

from holdfast.persistence import digest as digests
from holdfast.persistence.digest import PART_BYTES, FileHasher, digest_fd
from holdfast.stores.local_copy import EndedEarlyError

_SIZES = [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 3 * PART_BYTES + 12345]


def _content(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def _expected(content: bytes) -> str:
    if len(content) <= PART_BYTES:
        return f"xxh3-128:{xxhash.xxh3_128_hexdigest(content)}"
    parts = [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]
    return f"xxh3-128-16mib:{xxhash.xxh3_128_hexdigest(b''.join(map(xxhash.xxh3_128_digest, parts)))}"


@pytest.fixture(params=[1, 4])
def cores(request, monkeypatch) -> int:
    monkeypatch.setattr(digests.os, "cpu_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize("size_bytes", _SIZES)
def test_every_way_of_reading_gives_the_same(tmp_path, size_bytes: int, cores: int) -> None:
    content = _content(size_bytes)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert digest_fd(file.fileno(), size_bytes) == _expected(content)
    for chunk in (PART_BYTES + 7, 1 << 20, 300_001):
        hasher = FileHasher()
        for start in range(0, size_bytes, chunk):
            hasher.update(content[start : start + chunk])
        assert hasher.text() == _expected(content)


def test_what_an_earlier_version_digested_as_a_whole_is_compared_so(tmp_path) -> None:
    content = _content(2 * PART_BYTES + 5)
    before = f"xxh3-128:{xxhash.xxh3_128_hexdigest(content)}"
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert digest_fd(file.fileno(), len(content), FileHasher(like=before)) == before
    hasher = FileHasher(like=before)
    hasher.update(content)
    assert hasher.text() == before


def test_holes_count_as_the_zeros_that_they_read_as(tmp_path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.seek(PART_BYTES + 4096)
        file.write(b"end")
        file.truncate(3 * PART_BYTES)
    with path.open("rb") as file:
        assert digest_fd(file.fileno(), 3 * PART_BYTES) == _expected(path.read_bytes())


def test_bytes_are_told_as_they_are_read_and_all_of_them_once(tmp_path, cores: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(_content(2 * PART_BYTES + 9))
    told: list[int] = []
    with path.open("rb") as file:
        digest_fd(file.fileno(), 2 * PART_BYTES + 9, FileHasher(told.append))
    assert sum(told) == 2 * PART_BYTES + 9


def test_a_file_that_became_shorter_is_an_error_and_no_thread_is_left(tmp_path, cores: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(_content(2 * PART_BYTES))
    before = set(threading.enumerate())
    with path.open("rb") as file, pytest.raises(EndedEarlyError):
        digests._Parts(file.fileno(), 4 * PART_BYTES, FileHasher()).read()
    assert set(threading.enumerate()) <= before


def test_whoever_listens_ends_the_reading_by_an_error(tmp_path, cores: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(_content(3 * PART_BYTES))

    def refuse(num_bytes: int) -> None:
        raise RuntimeError("enough")

    with path.open("rb") as file, pytest.raises(RuntimeError, match="enough"):
        digest_fd(file.fileno(), 3 * PART_BYTES, FileHasher(refuse))
    assert digests._Parts._busy == 0


def test_many_files_at_once_use_the_cores_that_there_are(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(digests.os, "cpu_count", lambda: 3)
    content = _content(4 * PART_BYTES)
    path = tmp_path / "file"
    path.write_bytes(content)
    found: list[str] = []
    most = 0
    take = digests._Parts._take_cores

    def watch(parts: digests._Parts) -> int:
        nonlocal most
        count = take(parts)
        most = max(most, digests._Parts._busy)
        return count

    monkeypatch.setattr(digests._Parts, "_take_cores", watch)

    def read() -> None:
        with path.open("rb") as file:
            found.append(digest_fd(file.fileno(), len(content)))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [_expected(content)] * 6
    # Each reads in its own thread; only the cores that are left over get a further one.
    assert 3 <= most <= 6 + 2
    assert digests._Parts._busy == 0
