from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.persistence import logs
from holdfast.persistence.logs import Logs, append_text
from holdfast.stores import open_store
from support.descriptors import num_open_below
from support.remote_like_store import RemoteLikeStore
from support.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> RemoteLikeStore:
    store = RemoteLikeStore(tmp_path / "bucket")
    store.prepare()
    return store


def await_text(store: RemoteLikeStore, key: str, text: bytes) -> None:
    wait_until(lambda: store.exists(key) and store.read(key) == text, f"{key} holds {text!r}")


def test_where_a_store_appends_a_line_is_there_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    kept = Logs(store)
    log = kept.open("logs/a")
    log.write(b"one\n")
    assert store.read("logs/a") == b"one\n"
    log.close()
    kept.close()
    append_text(store, "logs/a", "two\n")
    assert store.read("logs/a") == b"one\ntwo\n"


def test_elsewhere_lines_come_after_a_pause_and_at_the_end(
    store: RemoteLikeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_FIRST_PAUSE_S", 0.2)
    kept = Logs(store)
    log = kept.open("logs/a")
    log.write(b"one\n")
    await_text(store, "logs/a", b"one\n")
    log.write(b"two\n")
    await_text(store, "logs/a", b"one\ntwo\n")
    log.write(b"three\n")
    log.close()
    await_text(store, "logs/a", b"one\ntwo\nthree\n")
    other = kept.open("logs/b")
    other.write(b"last\n")
    kept.close()
    assert store.read("logs/b") == b"last\n"
    append_text(store, "logs/b", "said after it\n")
    assert (store.read("logs/b"), store.read("logs/b.end")) == (b"last\n", b"said after it\n")


def test_a_long_log_goes_on_in_another_object(store: RemoteLikeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(logs, "_LARGEST_BYTES", 1000)
    kept = Logs(store)
    log = kept.open("log")
    written = b""
    for number in range(60):
        line = b"%05d" % number + os.urandom(40).hex().encode() + b"\n"
        log.write(line)
        written += line
        time.sleep(0.005)
    log.close()
    kept.close()
    parts = sorted((entry.key for entry in store.list()), key=lambda key: int(key.partition(".")[2] or 0))
    assert len(parts) > 1
    assert b"".join(store.read(key) for key in parts) == written


def test_a_store_that_refuses_is_told_of_once_and_tried_again(
    store: RemoteLikeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "_FIRST_PAUSE_S", 0.05)
    write, tries = RemoteLikeStore.write, []

    def refuse(self: RemoteLikeStore, key: str, data: bytes) -> None:
        tries.append(key)
        if len(tries) < 4:
            raise StorageError("no")
        write(self, key, data)

    monkeypatch.setattr(RemoteLikeStore, "write", refuse)
    kept = Logs(store)
    log = kept.open("log")
    log.write(b"one\n")
    await_text(store, "log", b"one\n")
    assert caplog.text.count("could not be kept") == 1
    tries.clear()
    log.write(b"two\n")
    kept.close()  # it is not waited for what is refused
    assert tries


def test_no_descriptor_is_left(store: RemoteLikeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = Logs(store)
    for number in range(5):
        log = kept.open(f"log-{number}")
        log.write(b"x\n")
    assert num_open_below(tmp_path) == 5
    kept.close()
    assert num_open_below(tmp_path) == 0
