"""A run's storage beside a plain list in memory: reports, crashes, damage, other configurations, in any order."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast.config import CheckpointConfig
from holdfast.errors import StorageError
from holdfast.metrics import encode_metrics
from holdfast.persistence import layout
from holdfast.persistence.catalog import load
from holdfast.persistence.metrics_log import read_lines
from holdfast.stores import open_store
from support.failing_store import WatchedStore
from support.runs import hidden, open_run, report, visible
from support.waiting import LIMIT_S

_configs = st.builds(
    CheckpointConfig,
    st.one_of(st.none(), st.integers(1, 3)),
    st.sampled_from([None, "score"]),
    st.sampled_from(["max", "min"]),
)
_scores = st.one_of(st.none(), st.just(math.nan), st.integers(0, 4).map(float))
_harms = st.sampled_from(["truncated", "altered", "missing", "manifest", "gone"])


@dataclass(frozen=True)
class _Entry:
    index: int
    score: float | None

    @property
    def name(self) -> str:
        return layout.checkpoint_name(self.index)

    def rank(self, config: CheckpointConfig) -> tuple[float, float, int]:
        if config.checkpoint_score_attribute is None or self.score is None or math.isnan(self.score):
            return (0, 0, self.index)
        return (1, self.score if config.checkpoint_score_order == "max" else -self.score, self.index)


def _keep(entries: list[_Entry], config: CheckpointConfig, pending: set[int]) -> list[_Entry]:
    if config.num_to_keep is None:
        return entries
    best = sorted(entries, key=lambda entry: entry.rank(config))[-config.num_to_keep :]
    return [entry for entry in entries if entry in best or entry is entries[-1] or entry.index in pending]


class RunStorage(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="holdfast-stateful-"))
        self.run = self.root / "run"
        self.kept: list[_Entry] = []
        self.let_go: list[_Entry] = []
        self.harmed: set[int] = set()
        self.reports: list[int] = []
        self.pending: set[int] = set()
        self.epoch = 0
        self._open(CheckpointConfig())

    def _open(self, config: CheckpointConfig) -> None:
        self.config = config
        self.flushing = threading.Event()
        self.flushing.set()
        self.dead = dead = threading.Event()
        flushing = self.flushing

        def before(operation: str, key: str) -> None:
            if operation == "sync" and key.startswith("checkpoint"):
                assert flushing.wait(LIMIT_S)
            if dead.is_set():
                raise StorageError(f"this driver died before {key}")

        self.writer = open_run(WatchedStore(open_store(self.run), before), config)
        self.epoch += 1
        assert self.writer.epoch == self.epoch
        assert self.writer.first_report == max(self.reports, default=0) + 1
        self._take_over()
        # As a driver does: what no earlier one came to is validated now.
        resumed = self.writer.validations.pending()
        assert {checkpoint.report_index for checkpoint in resumed} <= self.pending
        for checkpoint in resumed:
            self.writer.validations.hold(checkpoint)
        self.pending = {checkpoint.report_index for checkpoint in resumed}

    def _take_over(self) -> None:
        """After a crash, or damage, what retention had let go of may be there still, and nothing else."""
        found = [checkpoint.report_index for checkpoint in self.writer.checkpoints()]
        assert found == sorted(found)
        known = {entry.index: entry for entry in self.kept + self.let_go}
        unreadable = {entry.index for entry in self.kept if entry.index in self.harmed}
        assert {entry.index for entry in self.kept} - unreadable <= set(found) <= set(known)
        self.kept = [known[index] for index in found]

    @rule(score=_scores, validates=st.booleans())
    def report(self, score: float | None, validates: bool) -> None:
        index = max(self.reports, default=0) + 1
        metrics = {} if score is None else {"score": score}
        files = {"f": b"%d" % index * 9, "d/g": b""}
        source = self.root / "source"
        committed = report(self.writer, source, files, metrics, index=index, validates=validates)
        self.reports.append(index)
        if validates:
            self.writer.validations.hold(committed)
            self.pending.add(index)
        self._retain([*self.kept, _Entry(index, score)])

    def _retain(self, entries: list[_Entry]) -> None:
        self.kept = _keep(entries, self.config, self.pending)
        self.let_go += [entry for entry in entries if entry not in self.kept]

    @precondition(lambda self: any(entry.index in self.pending for entry in self.kept))
    @rule(data=st.data(), score=_scores)
    def validate(self, data: st.DataObject, score: float | None) -> None:
        entry = data.draw(st.sampled_from([entry for entry in self.kept if entry.index in self.pending]))
        checkpoint = next(each for each in self.writer.checkpoints() if each.report_index == entry.index)
        status, metrics = ("failed", None) if score is None else ("validated", encode_metrics({"score": score}))
        self.writer.validations.end(checkpoint, status, metrics).result()
        self.pending.discard(entry.index)
        scored = entry if score is None else replace(entry, score=score)
        entries = [scored if each is entry else each for each in self.kept]
        self.let_go = [each for each in self.let_go if each.index != entry.index]
        self._retain(entries)

    @rule()
    def report_without_checkpoint(self) -> None:
        index = max(self.reports, default=0) + 1
        self.writer.log_report(report=index, checkpoint=None, metrics=b"{}", other_ranks=None)
        self.reports.append(index)

    @rule(config=_configs)
    def crash(self, config: CheckpointConfig) -> None:
        self.dead.set()
        self.flushing.set()
        self.writer.close()
        self._open(config)

    @rule()
    def hold_the_disk_up(self) -> None:
        self.flushing.clear()

    @rule()
    def let_the_disk_go_on(self) -> None:
        self.flushing.set()
        self._settle()

    def _settle(self) -> None:
        """What happens behind has happened, or is held up: so that a failure can be repeated."""
        durability = self.writer._durability
        deadline = time.monotonic() + LIMIT_S
        while self.flushing.is_set() and (durability._unflushed or durability._doomed or durability._records):
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    @rule(config=_configs)
    def close_and_open(self, config: CheckpointConfig) -> None:
        self.let_the_disk_go_on()
        if self.harmed:
            self._take_over()
        self.writer.close()
        present = set(visible(self.run))
        whole = {entry.name for entry in self.kept if entry.index not in self.harmed}
        assert whole <= present
        if not self.harmed:
            assert present == whole
        assert all(".damaged-" in name for name in hidden(self.run))
        self._open(config)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), how=_harms)
    def harm(self, data: st.DataObject, how: str) -> None:
        entry = data.draw(st.sampled_from(self.kept))
        directory = self.run / entry.name
        if not (directory / "f").exists():
            return
        self.harmed.add(entry.index)
        if how == "truncated":
            (directory / "f").write_bytes((directory / "f").read_bytes()[:-1])
        elif how == "altered":
            (directory / "f").write_bytes(b"?" * len(b"%d" % entry.index * 9))
        elif how == "missing":
            (directory / "f").unlink()
        elif how == "manifest":
            (directory / layout.MANIFEST).write_bytes(b"?")
        else:
            shutil.rmtree(directory)

    @rule()
    def resume(self) -> None:
        held = [entry.index for entry in self.kept]
        found = self.writer.latest_valid()
        whole = [index for index in held if index not in self.harmed]
        if whole:
            # Or something newer, that retention had let go of and that is needed again.
            assert found is not None
            assert found.report_index >= whole[-1]
        if found is not None:
            assert found.report_index not in self.harmed
            assert (self.run / found.name / "f").read_bytes() == b"%d" % found.report_index * 9
        self._take_over()

    @invariant()
    def the_driver_holds_what_the_policy_keeps(self) -> None:
        self._settle()
        # A checkpoint that someone removed may have been noticed behind, and what it replaced brought back.
        held = [checkpoint.report_index for checkpoint in self.writer.checkpoints()]
        expected = [entry.index for entry in self.kept]
        if not self.harmed:
            assert held == expected
        else:
            assert set(expected) - self.harmed <= set(held)
            self._take_over()

    def teardown(self) -> None:
        self.flushing.set()
        self.writer.close()
        found = load(open_store(self.run))
        assert [line.report for line in read_lines(open_store(self.run), found.epochs)] == self.reports
        shutil.rmtree(self.root)


TestRunStorage = RunStorage.TestCase
TestRunStorage.settings = settings(max_examples=60, stateful_step_count=30)
