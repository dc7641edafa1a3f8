"""`report` from real workers: what is merged, what is refused, and that nobody hangs."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointConfig, DataParallelTrainer, RunConfig, ScalingConfig
from support.waiting import LIMIT_S, beside, wait_until


def run(function, tmp_path, workers=2, **options):
    return DataParallelTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="run", storage_path=tmp_path, **{"progress": "quiet", **options}),
    ).fit()


def failures(function, tmp_path, workers=2, **options):
    with pytest.raises(train.WorkerGroupError) as caught:
        run(function, tmp_path, workers, **options)
    assert caught.value.result is not None
    return caught.value.worker_failures


def failure(function, tmp_path, workers=2, **options):
    """Where all ranks fail alike, how the first of them did: whoever is much later has no failure of its own."""
    return next(iter(failures(function, tmp_path, workers, **options).values()))


def names(tmp_path):
    return sorted(p.name for p in (tmp_path / "run").iterdir() if p.name != ".holdfast")


def test_some_ranks_report_files_and_rank_zero_none(tmp_path):
    def loop():
        rank = train.get_context().get_world_rank()
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            if rank in (1, 3):
                Path(directory, f"shard-{rank}.pt").write_text(str(rank))
                Path(directory, "same.txt").write_text("same")
                checkpoint = Checkpoint.from_directory(directory)
            train.report({"rank": rank}, checkpoint)
            assert Path(directory).exists()
        latest = train.get_checkpoint()
        with latest.as_directory() as path:
            assert sorted(os.listdir(path)) == [".manifest.json", "same.txt", "shard-1.pt", "shard-3.pt"]

    result = run(loop, tmp_path, workers=4)
    assert result.metrics == {"rank": 0}
    assert [file.path for file in result.checkpoint.files()] == ["same.txt", "shard-1.pt", "shard-3.pt"]


def test_after_a_report_every_rank_sees_the_same_latest_checkpoint(tmp_path):
    def loop():
        rank = train.get_context().get_world_rank()
        for step in range(3):
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "step").write_text(str(step))
                train.report({}, Checkpoint.from_directory(directory) if rank == step % 2 else None)
            seen = train.collective.broadcast_from_rank_zero(train.get_checkpoint().path)
            assert seen == train.get_checkpoint().path
        listed = train.get_all_reported_checkpoints()
        assert [c.status for c in listed] == [train.CheckpointStatus.COMMITTED] * 3
        assert listed[-1].checkpoint == train.get_checkpoint()

    run(loop, tmp_path)


def test_the_same_name_with_other_bytes_from_two_ranks_is_an_error(tmp_path):
    def loop():
        rank = train.get_context().get_world_rank()
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model.pt").write_text(f"rank {rank}")
            train.report({}, Checkpoint.from_directory(directory))

    error = failure(loop, tmp_path)
    assert isinstance(error, train.ShardCollisionError)
    assert "model.pt" in str(error)
    assert names(tmp_path) == []


def test_a_rank_that_returns_ends_the_others_wait_at_once(tmp_path):
    def loop():
        for step in range(3):
            if train.get_context().get_world_rank() == 1 and step == 2:
                return
            train.report({"step": step})

    start = time.monotonic()
    found = failures(loop, tmp_path)
    assert time.monotonic() - start < LIMIT_S
    assert isinstance(found[0], train.UnevenCallsError)
    assert "rank 1 returned after 2" in str(found[0])
    assert "rank 0 made 3" in str(found[0])


def test_ranks_in_different_calls_are_told_at_once(tmp_path):
    def loop():
        if train.get_context().get_world_rank() == 0:
            train.report({})
        else:
            train.collective.barrier()

    found = failures(loop, tmp_path)
    assert all(isinstance(error, train.UnevenCallsError) for error in found.values())
    assert all("rank 0 called report, rank 1 called collective.barrier" in str(error) for error in found.values())


def test_a_late_rank_is_named_with_its_stack(tmp_path, capfd):
    seen = tmp_path / "seen"
    log = tmp_path / "run" / ".holdfast" / "logs" / "attempt_000001" / "rank_00001.log"

    def loop():
        if train.get_context().get_world_rank() == 1:
            while not seen.exists():  # a_rank_that_is_busy
                pass
        train.report({})

    def let_go():
        try:
            wait_until(lambda: log.exists() and "in loop" in log.read_text(), "its stack is in its log")
        finally:
            seen.touch()

    with beside(let_go):
        run(loop, tmp_path, progress="plain", late_rank_warning_s=0.2)
    text = "".join(capfd.readouterr())
    assert "rank 0 waits in report for rank 1" in text
    assert "test_reports.py" in text
    assert "in loop" in text


def test_a_rank_that_never_comes_ends_the_wait_at_its_limit(tmp_path):
    def loop():
        if train.get_context().get_world_rank() == 1:
            while True:
                time.sleep(0.01)
        train.report({})

    found = failures(loop, tmp_path, late_rank_warning_s=0.1, late_rank_timeout_s=0.3)
    assert isinstance(found[0], train.WaitTimeoutError)
    assert "rank 1" in str(found[0])


def test_any_number_that_is_converted_may_be_the_score(tmp_path):
    numpy = pytest.importorskip("numpy")

    def loop():
        for loss in (numpy.float32(0.5), numpy.int64(2), numpy.array(0.25)):
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "model").write_text("x")
                train.report({"loss": loss}, Checkpoint(directory))

    config = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="loss", checkpoint_score_order="min")
    assert run(loop, tmp_path, workers=1, checkpoint_config=config).checkpoint.path.endswith("checkpoint_000003")


def test_metrics_are_those_at_the_call(tmp_path):
    def loop():
        import numpy

        metrics = {"list": [1], "numpy": numpy.float32(0.5), "nan": float("nan")}
        train.report(metrics)
        metrics["list"].append(2)
        train.report({"done": 1})

    run(loop, tmp_path)
    first = train.Run(tmp_path / "run").reports()[0]["metrics"]
    assert first["list"] == [1]
    assert first["numpy"] == 0.5
    assert first["nan"] != first["nan"]


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ("{'a': {1, 2}}", train.MetricsError, "'a'"),
        ("{'acc': 'high'}", train.MetricsError, "acc"),
        ("{}, train.Checkpoint('/nowhere/at/all')", train.CheckpointSourceError, "/nowhere/at/all"),
        ("{}, train.Checkpoint(__import__('sys').executable)", train.CheckpointSourceError, "python"),
        ("{}, '/tmp'", train.CheckpointSourceError, "from_directory"),
        ("{}, train.Checkpoint('/tmp'), 'a/b'", train.ConfigurationError, "a/b"),
    ],
)
def test_bad_reports_fail_at_the_call_and_name_what_is_wrong(tmp_path, bad, error, text):
    def loop():
        eval(f"train.report({bad})", {"train": train})

    config = CheckpointConfig(checkpoint_score_attribute="acc")
    found = failure(loop, tmp_path, checkpoint_config=config)
    assert isinstance(found, error), found
    assert text in str(found)
    assert "eval(" in "".join(found.__notes__)


def test_an_error_that_the_function_handles_costs_nothing(tmp_path):
    def loop():
        try:
            train.report({"a": object()})
        except train.MetricsError:
            train.report({"a": 1})

    assert run(loop, tmp_path).metrics == {"a": 1}


def test_a_checkpoint_without_a_file_is_refused_and_one_empty_rank_is_not(tmp_path):
    def empty():
        with tempfile.TemporaryDirectory() as directory:
            train.report({}, Checkpoint.from_directory(directory))

    assert isinstance(failure(empty, tmp_path), train.EmptyCheckpointError)

    def one():
        with tempfile.TemporaryDirectory() as directory:
            if train.get_context().get_world_rank() == 0:
                Path(directory, "a").write_text("a")
            train.report({}, Checkpoint.from_directory(directory))

    assert len(run(one, tmp_path).checkpoint.files()) == 1


def test_a_chosen_name_is_kept_and_cannot_be_used_twice(tmp_path):
    def loop():
        for step in range(2):
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "step").write_text(str(step))
                train.report({}, Checkpoint.from_directory(directory), checkpoint_dir_name="mine")

    error = failure(loop, tmp_path, workers=1)
    assert isinstance(error, train.CheckpointExistsError)
    assert "mine" in str(error)
    assert (tmp_path / "run/mine/step").read_text() == "0"
    assert train.Run(tmp_path / "run").verify() == {}


def test_a_refused_report_of_a_single_worker_leaves_the_next_its_own_answer(tmp_path):
    def loop():
        directory = tempfile.mkdtemp(dir=tmp_path)
        Path(directory, "model").write_text("weights")
        checkpoint = Checkpoint(directory)
        train.report({"step": 1}, checkpoint, checkpoint_dir_name="taken")
        with pytest.raises(train.CheckpointExistsError):
            train.report({"step": 2}, checkpoint, checkpoint_dir_name="taken")
        return train.report({"step": 3}, checkpoint).result().path

    result = run(loop, tmp_path, workers=1)
    assert result.return_value.endswith("checkpoint_000003")
    assert [line["metrics"] for line in train.Run(tmp_path / "run").reports()] == [{"step": 1}, {"step": 3}]


def test_names_must_agree(tmp_path):
    def loop():
        rank = train.get_context().get_world_rank()
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, f"{rank}").write_text("x")
            train.report({}, Checkpoint.from_directory(directory), checkpoint_dir_name=f"by-{rank}")

    error = failure(loop, tmp_path)
    assert "by-0" in str(error)
    assert "by-1" in str(error)
    assert names(tmp_path) == []


def test_a_score_that_no_report_carries_is_told_of_once_with_what_there_is(tmp_path, caplog):
    def loop():
        for step in range(3):
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "step").write_text(str(step))
                train.report({"val": {"accuracy": step}, "loss": 1.0}, Checkpoint.from_directory(directory))

    kept = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="val/acuracy")
    result = run(loop, tmp_path, workers=1, checkpoint_config=kept)
    assert result.metrics["val"] == {"accuracy": 2}
    told = [each.getMessage() for each in caplog.records if "acuracy" in each.getMessage()]
    assert len(told) == 2
    assert "checkpoint_000001" in told[0]
    assert told[1].endswith(
        "none of 3 checkpoints had the metric 'val/acuracy', so the newest were kept, and not the best"
    )
    assert "its metrics: val/accuracy, loss; did you mean 'val/accuracy'?" in told[0]


def test_a_score_that_has_not_been_measured_yet_is_not_taken_for_a_misspelt_one(tmp_path, caplog):
    def loop():
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model").write_text("weights")
            train.report({"loss": 1.0}, Checkpoint.from_directory(directory))

    run(loop, tmp_path, workers=0, checkpoint_config=CheckpointConfig(checkpoint_score_attribute="eval_loss"))
    assert "without the metric 'eval_loss'" in caplog.text
    assert "its metrics: loss; where it is measured more seldom this is as it should be" in caplog.text
    assert "no checkpoint had the metric 'eval_loss'" in caplog.text


def test_a_score_that_comes_late_or_came_in_an_earlier_fit_is_not_said_to_be_missing_at_the_end(tmp_path, caplog):
    reports = [{"train_loss": 1.0}, {"val_loss": 1.0}]

    def loop():
        for metrics in reports:
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "model").write_text("weights")
                train.report(metrics, Checkpoint.from_directory(directory))

    kept = CheckpointConfig(checkpoint_score_attribute="val_loss")
    run(loop, tmp_path, workers=0, checkpoint_config=kept)
    assert caplog.text.count("val_loss") == 1
    assert "its metrics: train_loss; where it is measured more seldom" in caplog.text
    caplog.clear()
    del reports[1]
    run(loop, tmp_path, workers=0, checkpoint_config=kept)
    assert "val_loss" not in caplog.text


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_score_that_is_there_and_no_number_is_not_taken_for_a_misspelt_one(tmp_path, caplog, score):
    def loop():
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model").write_text("weights")
            train.report({"accuracy": score}, Checkpoint.from_directory(directory))

    run(loop, tmp_path, workers=1, checkpoint_config=CheckpointConfig(checkpoint_score_attribute="accuracy"))
    assert "accuracy" not in caplog.text


def test_a_callback_sees_every_report_and_may_fail(tmp_path, caplog):
    class Watch(train.UserCallback):
        def __init__(self):
            self.seen = []

        def after_report(self, run_context, metrics, checkpoint):
            self.seen.append((run_context.attempt, metrics, checkpoint))
            raise RuntimeError("the user's own")

    def loop():
        rank = train.get_context().get_world_rank()
        train.report({"rank": rank})

    watch = Watch()
    run(loop, tmp_path, callbacks=[watch])
    assert watch.seen == [(1, [{"rank": 0}, {"rank": 1}], None)]
    assert "the user's own" in caplog.text


def test_a_callback_is_told_of_the_end_with_the_error_that_fit_raises(tmp_path):
    class Watch(train.UserCallback):
        def __init__(self):
            self.seen = []

        def after_report(self, run_context, metrics, checkpoint):
            self.seen.append(("report", run_context.attempt, run_context.report, run_context.train_loop_config))

        def after_exception(self, run_context, worker_exceptions):
            self.seen.append(("failure", run_context.attempt, run_context.report, sorted(worker_exceptions)))

        def after_run(self, run_context, error):
            self.seen.append(("end", run_context.attempt, run_context.report, error))
            self.context = run_context

    def loop(config):
        train.report({"rate": config["rate"]})
        raise ValueError("intentional")

    def fit(function, callback):
        train.DataParallelTrainer(
            function,
            train_loop_config={"rate": 0.5},
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(
                name="told",
                storage_path=str(tmp_path),
                failure_config=train.FailureConfig(max_failures=1),
                callbacks=[callback],
                worker_runtime_env={"env_vars": {"TOKEN": "secret 1"}},
            ),
        ).fit()

    failed, succeeded = Watch(), Watch()
    with pytest.raises(train.TrainingFailedError) as raised:
        fit(loop, failed)
    config = {"rate": 0.5}
    assert failed.seen == [
        ("report", 1, 1, config),
        ("failure", 1, None, [0]),
        ("report", 2, 2, config),
        ("failure", 2, None, [0]),
        ("end", 2, None, raised.value),
    ]
    fit(lambda config: train.report(config), succeeded)
    assert succeeded.seen == [("report", 3, 3, config), ("end", 3, None, None)]
    context = succeeded.context
    assert (context.run_config.name, context.run_config.failure_config.max_failures) == ("told", 1)
    assert context.scaling_config == train.ScalingConfig(num_workers=1)
    assert type(context.backend_config).__name__ == "BackendConfig"
    assert "secret" not in f"{context} {context.run_config}"
