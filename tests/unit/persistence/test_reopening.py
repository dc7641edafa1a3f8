from __future__ import annotations

import json

import pytest

from holdfast.config import CheckpointConfig
from holdfast.persistence import layout
from holdfast.persistence.metrics_log import last_line
from holdfast.stores import open_store
from support.runs import names, open_run, read_json, report, visible


def _fill(run, tmp_path, losses, config=None) -> None:
    writer = open_run(run, config)
    for loss in losses:
        report(writer, tmp_path, {"f": b"%f" % loss}, {"loss": loss, "accuracy": 1 - loss})
    writer.close()


@pytest.mark.parametrize(
    "later",
    [
        CheckpointConfig(2, "loss", "min"),
        CheckpointConfig(2, "accuracy", "max"),
        CheckpointConfig(1, "loss", "min"),
        CheckpointConfig(4),
    ],
)
def test_a_changed_retention_config_at_re_run_never_deletes_the_best(tmp_path, later) -> None:
    run = tmp_path / "run"
    _fill(run, tmp_path, [0.5, 0.1, 0.4, 0.3])
    opened = open_run(run, later)
    # Opening deletes nothing: something newer has to be on disk first.
    assert len(names(opened)) == 4
    opened.close()
    assert len(visible(run)) == 4
    again = open_run(run, later)
    report(again, tmp_path, {"f": b""}, {"loss": 0.9, "accuracy": 0.1})
    again.close()
    assert "checkpoint_000002" in visible(run)
    assert "checkpoint_000005" in visible(run)
    assert visible(run) == names(again)


def test_a_metric_that_no_old_checkpoint_has_deletes_by_age(tmp_path) -> None:
    run = tmp_path / "run"
    _fill(run, tmp_path, [0.5, 0.1, 0.4])
    again = open_run(run, CheckpointConfig(2, "reward"))
    report(again, tmp_path, {"f": b""}, {"reward": 1.0})
    again.close()
    assert visible(run) == ["checkpoint_000003", "checkpoint_000004"]


def test_records_with_missing_and_with_unknown_fields_open(tmp_path) -> None:
    run = tmp_path / "run"
    _fill(run, tmp_path, [0.5, 0.1])
    wanted = {
        layout.RUN_RECORD: {"name", "id"},
        layout.epoch_key(1): {"epoch"},
        layout.note_key("checkpoint_000001"): {"id"},
        layout.manifest_key("checkpoint_000001"): {"id", "name", "epoch", "report_index", "files"},
    }
    for key, kept in wanted.items():
        record = {field: value for field, value in read_json(run / key).items() if field in kept}
        (run / key).write_text(json.dumps({**record, "field_of_tomorrow": [1]}))
    again = open_run(run)
    assert names(again) == ["checkpoint_000001", "checkpoint_000002"]
    assert (again.first_attempt, again.first_report) == (2, 3)
    assert again.latest_valid().name == "checkpoint_000002"
    again.close()


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b'{"format_version": 1, "ep'])
def test_a_record_torn_by_a_loss_of_power_never_makes_the_run_unreadable(tmp_path, content: bytes) -> None:
    run = tmp_path / "run"
    _fill(run, tmp_path, [0.5, 0.1])
    records = [path for path in (run / layout.PRIVATE).rglob("*") if path.is_file()]
    assert len(records) >= 6
    for path in records:
        before = path.read_bytes()
        path.write_bytes(content)
        again = open_run(run)
        assert names(again)[:2] == ["checkpoint_000001", "checkpoint_000002"], path
        assert again.first_report >= 3
        report(again, tmp_path / path.name, {"f": b"new"})
        again.close()
        path.write_bytes(before)
        assert last_line(open_store(run), {}) is not None


def test_an_interrupted_driver_leaves_what_the_next_one_needs(tmp_path) -> None:
    run = tmp_path / "run"
    writer = open_run(run, CheckpointConfig(2))
    for number in range(5):
        report(writer, tmp_path, {"f": b"%d" % number})
    writer._durability.close()  # a process that dies deletes nothing after that; this one lives on
    writer._lease.release()  # as the kernel does when a process dies
    again = open_run(run, CheckpointConfig(2))
    assert names(again) == ["checkpoint_000004", "checkpoint_000005"]
    report(again, tmp_path, {"f": b"x"}, index=again.first_report)
    again.close()
    assert visible(run) == ["checkpoint_000005", "checkpoint_000006"]
    writer.close()
