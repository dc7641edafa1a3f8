"""Files that are not read again: only those that nobody can have changed unseen."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from holdfast.metrics import encode_metrics
from holdfast.persistence import known_digests, layout, transfer
from holdfast.persistence.digest import digest_fd
from holdfast.persistence.known_digests import KnownDigests
from holdfast.persistence.staging import stage
from holdfast.persistence.writer import RunWriter
from holdfast.run import Run
from holdfast.stores.page_cache import is_clean
from support.runs import open_run, report

_SIZE_BYTES = 1 << 20


@pytest.fixture
def path(tmp_path) -> Path:
    """A file that is on the disk, and was changed some time ago."""
    path = tmp_path / "frozen.bin"
    path.write_bytes(os.urandom(_SIZE_BYTES))
    _settle(path)
    with path.open("rb") as file:
        if not is_clean(file.fileno()):
            pytest.skip("this file system or kernel does not tell what waits to be written")
    return path


def _settle(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    time.sleep(0.15)


def _read(known: KnownDigests, path: Path) -> str:
    with path.open("rb") as file:
        descriptor = file.fileno()
        state = known.before_reading(descriptor, os.fstat(descriptor))
        digest = digest_fd(descriptor, _SIZE_BYTES)
        if state is not None:
            known.remember(state, os.fstat(descriptor), digest)
    return digest


def test_an_unchanged_file_is_known(path: Path) -> None:
    known = KnownDigests()
    assert known.find(path.stat()) is None
    digest = _read(known, path)
    assert known.find(path.stat()) == digest
    os.rename(path, path.with_name("other"))
    assert known.find(path.with_name("other").stat()) is None, "a rename moves the time of the last change"


@pytest.mark.parametrize("how", ["write", "mapping", "time set back", "another file"])
def test_a_changed_file_is_not_known(path: Path, how: str) -> None:
    known = KnownDigests()
    _read(known, path)
    before = path.stat()
    if how == "another file":
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        os.replace(other, path)
    else:
        with path.open("r+b") as file:
            if how == "mapping":
                with mmap.mmap(file.fileno(), _SIZE_BYTES) as view:
                    view[7] ^= 1
            else:
                file.write(b"x")
    if how == "time set back":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known.find(path.stat()) is None


def test_what_waits_for_the_disk_may_change_unseen_and_is_not_remembered(path: Path) -> None:
    known = KnownDigests()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), _SIZE_BYTES) as view:
        for _ in range(20):
            view[7] ^= 1
            time.sleep(0.15)
            _read(known, path)
            before = path.stat()
            view[8] ^= 1
            assert known.find(path.stat()) is None
            if path.stat() == before:
                break  # else the kernel has written it in between, as it may at any time, and there was no need for this
        else:
            pytest.skip("the kernel does not let anything wait to be written")
        view.flush()
        _settle(path)
        digest = _read(known, path)
        assert known.find(path.stat()) == digest
        view[9] ^= 1
        assert known.find(path.stat()) is None


def test_what_was_changed_just_now_is_not_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_digests, "_SETTLED_NS", 60 * 10**9)  # however long the disk takes
    known = KnownDigests()
    with path.open("r+b") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
    _read(known, path)
    assert known.find(path.stat()) is None


def test_memory_is_never_trusted() -> None:
    descriptor = os.memfd_create("test")
    try:
        os.write(descriptor, b"x")
        assert not is_clean(descriptor)
    finally:
        os.close(descriptor)


def test_a_file_that_is_reported_again_is_linked_and_not_read(path: Path, tmp_path, monkeypatch) -> None:
    writer = open_run(tmp_path / "run")
    report(writer, tmp_path, {"frozen.bin": path.read_bytes(), "step": b"1"}, index=1)
    source = tmp_path / "report-1-rank-0"
    _settle(source / "frozen.bin")
    _again(writer, source, 2)

    def refuse(*arguments: object) -> str:
        raise AssertionError("it was read")

    monkeypatch.setattr(transfer, "digest_fd", refuse)
    _again(writer, source, 3)
    monkeypatch.undo()
    with (source / "frozen.bin").open("r+b") as file, mmap.mmap(file.fileno(), _SIZE_BYTES) as view:
        view[5000] ^= 1
        _again(writer, source, 4)
        view[5001] ^= 1
        _again(writer, source, 5)
        now = bytes(view)
    writer.close()
    frozen = [tmp_path / "run" / f"checkpoint_{index:06d}" / "frozen.bin" for index in range(1, 6)]
    assert len({each.stat().st_ino for each in frozen[:3]}) == 1
    assert frozen[4].read_bytes() == now != frozen[3].read_bytes() != frozen[2].read_bytes()
    assert not any(Run(tmp_path / "run").verify().values())


def _again(writer: RunWriter, source: Path, index: int) -> None:
    (source / "step").write_bytes(b"%d" % index)
    checkpoint = writer.begin_checkpoint(layout.checkpoint_name(index), index)
    receipt = checkpoint.store_shard(stage(source, 0)).result()
    checkpoint.commit([receipt], metrics=encode_metrics({}), world_size=1, attempt=writer.first_attempt)
