"""A driver dies before each single write that it makes; whatever is there afterwards must be whole and go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import support.crash_scenarios as scenarios
from holdfast.persistence import layout
from holdfast.persistence.catalog import load
from holdfast.persistence.manifest import read_manifest
from holdfast.persistence.metrics_log import highest_report, read_lines
from holdfast.persistence.verify import find_damage
from holdfast.stores.base import Store
from support.remote_like_store import RemoteLikeStore
from support.runs import hidden, names, open_run, report

_STORIES = [
    ("committing", "local", 15),
    ("committing", "calls", 40),
    ("committing", "remote", 12),
    ("strict", "local", 15),
    ("deleting", "local", 20),
    ("deleting", "calls", 60),
    ("deleting", "remote", 20),
    ("unlogged", "remote", 20),
    ("reusing", "local", 20),
    ("reopening", "local", 15),
    ("reopening", "remote", 6),
    ("relogging", "local", 15),
    ("relogging", "remote", 15),
]


def _tell_all(story: str, kind: str, directory: Path) -> int:
    done = subprocess.run(
        [sys.executable, scenarios.__file__, story, kind, str(directory)],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def _check_whole(store: Store) -> list[str]:
    """Everything that a reader takes for a checkpoint is whole, and nobody's mix; gives what is told of as valid."""
    found = load(store)
    assert not found.problems
    for checkpoint in found.checkpoints:
        manifest = read_manifest(store.child(checkpoint.name))
        assert manifest is not None
        damaged = [damage.path for damage in find_damage(store, checkpoint.name, manifest)]
        assert damaged in ([], ["model"])
        expected: dict[str, bytes] = {}
        for shard in scenarios.contents(checkpoint.report_index):
            expected |= shard
        if damaged:
            # The story's own damage, before its second driver noticed.
            assert checkpoint.report_index == 2
            continue
        entries = {entry.key.partition("/")[2] for entry in store.list(checkpoint.name, recursive=True)}
        assert entries == {*expected, layout.MANIFEST}
        assert {path: store.read(f"{checkpoint.name}/{path}") for path in expected} == expected
    return [checkpoint.name for checkpoint in found.checkpoints]


def _acknowledged(directory: Path, number: int) -> tuple[list[int], set[int]]:
    path = directory / f"{number}.acknowledged"
    lines = path.read_text().splitlines() if path.exists() else []
    reports = [int(line.split()[1]) for line in lines if line.startswith("report")]
    return reports, {int(line.split()[1]) for line in lines if line.startswith("damaged")}


@pytest.mark.parametrize(("story", "kind", "least"), _STORIES, ids=lambda value: str(value))
def test_death_before_any_write_loses_nothing_that_was_acknowledged(tmp_path, story, kind, least, caplog) -> None:
    count = _tell_all(story, kind, tmp_path)
    # Fewer writes than there were when this was written: the story does not attack what it is meant to.
    assert count >= least
    for number in range(1, count + 1):
        store = scenarios.open_kind(kind, tmp_path / str(number) / "run")
        _check_whole(store)
        reports, damaged = _acknowledged(tmp_path, number)
        writer = open_run(store, scenarios.config(story))
        held = {checkpoint.report_index for checkpoint in writer.checkpoints()}
        good = set(reports) - damaged
        if scenarios.config(story).num_to_keep == 1:
            # One is kept; a newer one may have been committed and not told of.
            assert max(held, default=0) >= max(good, default=0)
        else:
            assert good <= held
        newest = writer.latest_valid()
        assert (newest.report_index if newest else 0) >= max(good, default=0)
        assert writer.first_report > max(reports, default=0)
        if kind != "remote":
            assert all(".damaged-" in name for name in hidden(tmp_path / str(number) / "run"))
        last = report(writer, tmp_path / f"{number}-last", {"f": b"last"}, index=writer.first_report)
        writer.close()
        # Also of those that have been deleted since, and where a line waits in memory for a while.
        logged = [line.report for line in read_lines(store, load(store).epochs)]
        assert {*reports, *held, last.report_index} <= set(logged)
        assert names(writer)[-1] == last.name
        _check_left_overs(tmp_path / str(number) / "run", store, names(writer), damaged)


@pytest.mark.parametrize(("kind", "least"), [("local", 20), ("calls", 60), ("remote", 20)])
def test_death_before_any_write_forgets_no_validation_and_no_score(tmp_path, kind, least) -> None:
    count = _tell_all("validating", kind, tmp_path)
    assert count >= least
    for number in range(1, count + 1):
        store = scenarios.open_kind(kind, tmp_path / str(number) / "run")
        _check_whole(store)
        path = tmp_path / f"{number}.acknowledged"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        reported = {int(line[1]) for line in lines if line[0] == "report"}
        validated = {int(line[1]) for line in lines if line[0] == "validated"}
        writer = open_run(store, scenarios.config("validating"))
        found = load(store)
        held = {checkpoint.report_index: checkpoint for checkpoint in writer.checkpoints()}
        # The second is worse than the first and not the latest: it may go once it has its score, which follows the first's.
        assert reported - ({2} if 1 in validated else set()) <= set(held)
        pending = {checkpoint.report_index for checkpoint in writer.validations.pending()}
        known = {
            index for index in held if held[index].name in found.notes and found.notes[held[index].name].validation
        }
        assert (reported & set(held)) - validated - pending <= known
        for index in validated & set(held):
            assert found.notes[held[index].name].validation == "validated"
            assert b'"score":%d' % -index in bytes(held[index].metrics)
        writer.close()
        _check_left_overs(tmp_path / str(number) / "run", store, names(writer), set())


@pytest.mark.parametrize(("kind", "least"), [("local", 8), ("remote", 20)])
def test_death_before_any_write_of_the_log_loses_no_line_and_shows_none_twice(tmp_path, kind, least) -> None:
    count = _tell_all("logging", kind, tmp_path)
    assert count >= least
    for number in range(1, count + 1):
        store = scenarios.open_kind(kind, tmp_path / str(number) / "run")
        reports, _ = _acknowledged(tmp_path, number)
        logged = [line.report for line in read_lines(store, {})]
        assert logged in (reports, [*reports, len(reports) + 1])
        assert highest_report(store) == len(logged)


def _check_left_overs(run: Path, store: Store, kept: list[str], damaged: set[int]) -> None:
    directories = {entry.key for entry in store.list() if entry.is_directory and not layout.is_hidden(entry.key)}
    assert directories - set(kept) <= ({"again"} if damaged else set())
    files = [entry.key for entry in store.list(recursive=True)]
    everything = [str(path.relative_to(run)) for path in run.rglob("*") if ".uploads" not in path.parts]
    if isinstance(
        store, RemoteLikeStore
    ):  # a real one has no temporary files that a death in another thread's put could leave
        everything = [path for path in everything if not path.endswith(".tmp")]
    assert not [path for path in everything if ".partial-" in path or ".deleting-" in path or path.endswith(".tmp")]
    noted = {key.rpartition("/")[2].removesuffix(".json") for key in files if key.startswith(layout.NOTES)}
    assert noted <= directories
    assert not [key for key in files if key.startswith(layout.PENDING)]
