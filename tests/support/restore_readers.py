"""Child processes that read a checkpoint through the shared restore, and stores that can be held up or broken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

from holdfast.persistence.manifest import encode_manifest
from holdfast.persistence.staging import stage
from holdfast.persistence.upload import Uploader
from holdfast.records import Manifest
from support.drivers import Driver
from support.remote_like_store import RemoteLikeStore

TESTS = Path(__file__).parent.parent

_READER = """
import os, sys, time
from pathlib import Path
from support.restore_readers import CountingStore
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.restore import shared_copy

remote, cache, log, pause_s, hold_s = sys.argv[1:6]
store = CountingStore(remote, log=log, pause_s=float(pause_s))
with shared_copy(store, read_manifest(store), cache_dir=cache, timeout_s=60) as directory:
    names = sorted(os.listdir(directory))
    sizes = [os.path.getsize(directory / name) for name in names]
    print("reading", len(names), sum(sizes), flush=True)
    if float(hold_s) < 0:
        sys.stdin.read()
    else:
        time.sleep(float(hold_s))
    assert sorted(os.listdir(directory)) == names
print("left", flush=True)
"""


class CountingStore(RemoteLikeStore):
    """Notes each file that is opened for reading in a log; a pause makes a download last."""

    def __init__(self, root: str | os.PathLike[str], *, log: str | os.PathLike[str], pause_s: float = 0.0) -> None:
        super().__init__(root)
        self._log = os.fspath(log)
        self._pause_s = pause_s

    def open_read(self, key: str) -> BinaryIO:
        with open(self._log, "ab", buffering=0) as log:
            log.write(f"{key}\n".encode())
        time.sleep(self._pause_s)
        return super().open_read(key)


def make_remote(tmp_path: Path, *, num_files: int = 4, size_bytes: int = 50_000) -> tuple[Path, Manifest]:
    """A checkpoint in a remote-like store at `tmp_path/remote`."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(num_files):
        (source / f"file-{number}").write_bytes(os.urandom(size_bytes))
    remote = tmp_path / "remote"
    store = RemoteLikeStore(remote)
    uploader = Uploader()
    receipt = uploader.store_shard(stage(source, 0), store, "").result(30)
    uploader.close()
    manifest = Manifest(id="0123", name="checkpoint", files=receipt.files)
    store.create(".manifest.json", encode_manifest(manifest))
    return remote, manifest


def start_reader(tmp_path: Path, *, pause_s: float = 0.0, hold_s: float = 0.0) -> Driver:
    """A process that reads the checkpoint of `make_remote`.

    Args:
        pause_s: How long each file's download lasts.
        hold_s: How long it reads; negative: until its standard input is closed.
    """
    places = [tmp_path / name for name in ("remote", "cache", "log")]
    path = os.pathsep.join([str(TESTS), *sys.path])
    return Driver(_READER, *places, pause_s, hold_s, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})


def downloads(tmp_path: Path) -> int:
    """How many files were opened for reading so far."""
    log = tmp_path / "log"
    return len(log.read_bytes().splitlines()) if log.exists() else 0
