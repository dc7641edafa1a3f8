from __future__ import annotations

import pytest

from holdfast.config import CheckpointConfig
from holdfast.errors import ConfigurationError, RunNotFoundError
from holdfast.result import Result
from holdfast.stores import open_store
from support.runs import open_run, report

_BY_LOSS = CheckpointConfig(2, "loss", "min")


def _fill(run, tmp_path, losses=(3.0, 1.0, 2.0, 5.0)):
    writer = open_run(run, _BY_LOSS)
    for loss in losses:
        report(writer, tmp_path, {"f": b"%f" % loss}, {"loss": loss})
    writer.close()
    return writer


def test_latest_best_and_metrics(tmp_path) -> None:
    run = tmp_path / "run"
    writer = _fill(run, tmp_path)
    error = ValueError("x")
    result = Result.of_run(
        writer.store, error=error, return_value=7, checkpoint_config=_BY_LOSS, checkpoints=writer.checkpoints()
    )
    assert result.path == str(run)
    assert result.metrics == {"loss": 5.0}
    assert (result.error, result.return_value, result.filesystem) == (error, 7, None)
    assert result.checkpoint.path == str(run / "checkpoint_000004")
    assert [metrics["loss"] for _, metrics in result.best_checkpoints] == [5.0, 2.0, 1.0]
    assert result.get_best_checkpoint("loss", "min").path == str(run / "checkpoint_000002")
    assert result.get_best_checkpoint("loss", "max").path == str(run / "checkpoint_000004")
    assert list(result.metrics_dataframe["loss"]) == [3.0, 1.0, 2.0, 5.0]
    with pytest.raises(ConfigurationError):
        result.get_best_checkpoint("reward", "max")


def test_from_storage_alone_it_says_the_same(tmp_path) -> None:
    _fill(tmp_path / "run", tmp_path)
    result = Result.from_path(tmp_path / "run")
    assert result.metrics == {"loss": 5.0}
    assert [metrics["loss"] for _, metrics in result.best_checkpoints] == [5.0, 2.0, 1.0]
    assert (result.error, result.return_value) == (None, None)
    with pytest.raises(RunNotFoundError):
        Result.from_path(tmp_path / "missing")


def test_a_later_fit_of_the_same_run_changes_nothing_in_it(tmp_path) -> None:
    run = tmp_path / "run"
    _fill(run, tmp_path)
    result = Result.of_run(open_store(run), checkpoint_config=_BY_LOSS)
    untouched = Result.of_run(open_store(run), checkpoint_config=_BY_LOSS)
    _fill(run, tmp_path / "later", (0.5,))
    assert result.checkpoint.path == str(run / "checkpoint_000004")
    assert len(result.best_checkpoints) == 3
    assert list(untouched.metrics_dataframe["report_index"]) == [1, 2, 3, 4]


def test_a_run_without_reports_has_nothing(tmp_path) -> None:
    open_run(tmp_path / "run").close()
    result = Result.from_path(tmp_path / "run")
    assert result.metrics is None
    assert result.checkpoint is None
    assert result.best_checkpoints == []
    assert result.get_best_checkpoint("loss", "min") is None
    assert len(result.metrics_dataframe) == 0
