"""Runs a story once for each write that it makes, and dies just before that write, as by SIGKILL.

A program of its own, so that it can fork without anyone else's threads: `crash_scenarios.py STORY STORE DIRECTORY`.
The k-th telling works in `DIRECTORY/<k>` and says in `DIRECTORY/<k>.acknowledged` what had returned by then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from holdfast.config import CheckpointConfig
from holdfast.persistence import layout, metrics_log, segments
from holdfast.persistence.metrics_log import MetricsLog, encode_line
from holdfast.persistence.writer import RunWriter
from holdfast.stores import open_store
from holdfast.stores.base import Store
from support.failing_store import WatchedStore, die_at
from support.remote_like_store import RemoteLikeStore
from support.runs import open_run, report

Tell = Callable[[str], None]


# Large enough that the checkpoint after it gets it by a link, or by a copy that the store makes.
FROZEN = bytes(range(256)) * 4096


def contents(index: int) -> list[dict[str, bytes]]:
    """What two ranks report: it follows from the index, so that a reader can tell a mix; but for what never changes."""
    return [
        {"model": b"m%d" % index * 50, "deep/er": b"", "frozen": FROZEN},
        {"shard": b"s%d" % index, "same": b"x"},
    ]


def open_kind(kind: str, path: Path) -> Store:
    """A store of a kind; `calls` is a local one whose story dies before single calls of the system."""
    return RemoteLikeStore(path) if kind == "remote" else open_store(path)


def _die_before_calls(number: int) -> None:
    """Makes this process die before its `number`-th call that changes a directory."""
    before = die_at(number)

    def counted(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            before(name, "")
            return real(*args, **options)

        return call

    for name in ("link", "mkdir", "rename", "replace", "rmdir", "symlink", "unlink", "fsync"):
        setattr(os, name, counted(name))


def config(story: str) -> CheckpointConfig:
    """How a story keeps its checkpoints."""
    if story == "validating":
        return CheckpointConfig(1, "score")
    return CheckpointConfig(1) if story in ("deleting", "reusing", "unlogged", "relogging") else CheckpointConfig()


def _report(writer: RunWriter, index: int, tell: Tell, name: str | None = None) -> None:
    source = Path(writer.store.url.removeprefix("remote-like://") + "-source")
    report(writer, source, contents(index), {"loss": 1.0 / index}, index=index, name=name)
    tell(f"report {index}")


def _committing(store: Store, tell: Tell) -> None:
    writer = open_run(store)
    for index in (1, 2):
        _report(writer, index, tell)
    writer.close()


def _strict(store: Store, tell: Tell) -> None:
    writer = open_run(store, durability="strict")
    for index in (1, 2):
        _report(writer, index, tell)
    writer.close()


def _deleting(store: Store, tell: Tell) -> None:
    writer = open_run(store, CheckpointConfig(1))
    for index in (1, 2, 3):
        _report(writer, index, tell)
    writer.close()


def _unlogged(store: Store, tell: Tell) -> None:
    """As `_deleting`, but lines that need not go out wait in memory."""
    metrics_log._FLUSH_S = 3600.0
    _deleting(store, tell)


def _reusing(store: Store, tell: Tell) -> None:
    writer = open_run(store, CheckpointConfig(1))
    for index in (1, 2, 3):
        _report(writer, index, tell, name="ab"[index % 2])
    writer.close()


def _reopening(store: Store, tell: Tell) -> None:
    """A second driver finds the newest checkpoint damaged, notes it, and uses its name again."""
    plain = store.__dict__["_store"]
    first = open_run(plain)  # this part is not what dies
    _report(first, 1, tell)
    _report(first, 2, tell, name="again")
    first.close()
    plain.write("again/model", b"damaged")
    tell("damaged 2")
    writer = open_run(store)
    found = writer.latest_valid()
    if found is None or found.report_index != 1:
        raise SystemExit(f"went on from {found}")
    _report(writer, 3, tell)
    if store.capabilities.atomic_rename:
        _report(writer, 4, tell, name="again")
    writer.close()


def _relogging(store: Store, tell: Tell) -> None:
    """A second driver makes the lines anew that the first one had no time to write, and deletes what it need not keep."""
    plain = store.__dict__["_store"]
    first = open_run(plain)  # this part is not what dies
    for index in (1, 2):
        _report(first, index, tell)
    first.close()
    for entry in plain.list(layout.METRICS):
        plain.delete(entry.key)
    metrics_log._FLUSH_S = 3600.0
    writer = open_run(store, CheckpointConfig(1))
    _report(writer, 3, tell)
    writer.close()


def _validating(store: Store, tell: Tell) -> None:
    """All are kept until they have a score; then the best, which is the first, and the latest."""
    writer = open_run(store, config("validating"))
    source = Path(store.url.removeprefix("remote-like://") + "-source")
    committed = []
    for index in (1, 2, 3):
        files = contents(index)
        committed.append(report(writer, source, files, {"loss": 1.0}, index=index, validates=True))
        writer.validations.hold(committed[-1])
        tell(f"report {index}")
    for checkpoint in committed:
        score = b'{"score":%d}' % -checkpoint.report_index
        writer.validations.end(checkpoint, "validated", score).result()
        tell(f"validated {checkpoint.report_index}")
    writer.close()


def _logging(store: Store, tell: Tell) -> None:
    """Reports without checkpoints, each a segment of the log where nothing can be appended, and every third one merges them."""
    segments._MERGED_AT_ONCE = 3
    log = MetricsLog(store, 1, 1)
    for index in range(1, 9):
        log.append(encode_line(index, 1, 1.0, None, b"{}", None))
        log.flush()
        tell(f"report {index}")
    log.close()


STORIES = {
    "logging": _logging,
    "committing": _committing,
    "strict": _strict,
    "deleting": _deleting,
    "unlogged": _unlogged,
    "reusing": _reusing,
    "reopening": _reopening,
    "relogging": _relogging,
    "validating": _validating,
}


def _child(story: str, kind: str, directory: Path, number: int) -> None:
    acknowledged = os.open(f"{directory}/{number}.acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(text: str) -> None:
        os.write(acknowledged, f"{text}\n".encode())

    store = open_kind(kind, directory / str(number) / "run")
    if kind == "calls":
        _die_before_calls(number)
    else:
        store = WatchedStore(store, die_at(number))
    STORIES[story](store, tell)
    tell("end")


def main() -> None:
    """Forks a child a write until one of them tells the whole story."""
    story, kind, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    for number in range(1, 1000):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _child(story, kind, directory, number)
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            print(number)
            return
        if status != -9:
            raise SystemExit(f"telling {number} of {story!r} ended with {status}")


if __name__ == "__main__":
    main()
