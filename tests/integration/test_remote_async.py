"""Asynchronous checkpoints on their way into a bucket, while workers and drivers die, files change and the store refuses."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointConfig, CheckpointUploadMode, DataParallelTrainer, FailureConfig, RunConfig
from holdfast.errors import StorageAccessError
from holdfast.stores import open_store
from support.drivers import Driver
from support.runs import names, open_run
from support.s3_proxy import Fault, answer
from support.waiting import LIMIT_S, await_end, await_file, beside, wait_until

FIRST, SECOND = "checkpoint_000001/", "checkpoint_000002/"
DENIED = answer(403, "AccessDenied")


@pytest.fixture
def behind(server, bucket):
    """The run, past the proxy."""
    return server.url(bucket, "exp/run")


def fit(function, url, *, workers=2, failures=0, config=None, **options):
    return DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name="run",
            storage_path=url,
            failure_config=FailureConfig(max_failures=failures),
            **{"progress": "quiet", **options},
        ),
    ).fit()


def report_step(step, num_files=1, mode=CheckpointUploadMode.ASYNC):
    """Reports files of this rank; the directory is gone when it returns."""
    rank = train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(num_files):
            Path(directory, f"rank-{rank}-{number}").write_text(f"step {step}")
        return train.report({"step": step}, Checkpoint.from_directory(directory), checkpoint_upload_mode=mode)


def restored():
    """What the checkpoint that this attempt began with holds, or None."""
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        return {path.name: path.read_text() for path in Path(directory).iterdir() if not path.name.startswith(".")}


def whole(step, num_files=1):
    return {f"rank-{rank}-{number}": f"step {step}" for rank in range(2) for number in range(num_files)}


def write_whole(path, text):
    """So that whoever waits for the file never finds it empty."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def await_requests(proxy, method, contains, count=1):
    wait_until(lambda: proxy.count(method, contains) >= count, f"{method} {contains} is asked for")


def held(proxy, contains=FIRST):
    """Keeps the files of a checkpoint from being stored, until what is returned is set."""
    event = threading.Event()
    proxy.fail(Fault("PUT", contains, times=-1, waits_for=event))
    return event


def assert_only(server, bucket, behind, names):
    """These checkpoints are in the bucket, whole, and nothing of any other."""
    run = train.Run(behind)
    assert [each.checkpoint.path.rpartition("/")[2] for each in run.checkpoints] == names
    assert not any(run.verify().values())
    found = {entry.key.split("/")[0] for entry in open_store(behind).list(recursive=True)}
    assert sorted(name for name in found if name != ".holdfast") == names
    assert [entry.key for entry in open_store(behind).list(".holdfast/pending", recursive=True)] == []
    assert server.unfinished_uploads(bucket) == 0


def ends_after_its_report(config):
    found = restored()
    if found is not None:
        return found
    rank = train.get_context().get_world_rank()
    report_step(1)
    train.collective.barrier()
    if rank == 1:
        write_whole(Path(config["base"], "pid"), str(os.getpid()))
        if config["how"] == "raise":
            raise RuntimeError("right after the report")
        if config["how"] == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return None


@pytest.mark.parametrize("how", ["raise", "exit", "kill"])
@pytest.mark.parametrize("failures", [0, 1])
def test_what_is_on_its_way_when_a_worker_ends_is_finished_and_resumed_from(
    server, proxy, bucket, url, behind, tmp_path, how, failures
):
    config = {"base": str(tmp_path), "how": how}
    hold = held(proxy)

    def let_go_when_the_worker_is_gone():
        try:
            await_file(tmp_path / "pid")
            await_end(int((tmp_path / "pid").read_text()))
        finally:
            hold.set()

    with beside(let_go_when_the_worker_is_gone):
        if failures:
            assert fit(ends_after_its_report, url, failures=1, config=config).return_value == whole(1)
        else:
            with pytest.raises(train.WorkerGroupError) as caught:
                fit(ends_after_its_report, url, config=config)
            assert caught.value.result.checkpoint.path.endswith("/run/checkpoint_000001")
    assert proxy.count("PUT", FIRST) >= 2
    if not failures:
        assert fit(ends_after_its_report, url, config=config).return_value == whole(1)
    assert_only(server, bucket, behind, ["checkpoint_000001"])


STOPPED = """
import os, sys, tempfile, time
from pathlib import Path
import holdfast as train

url, base, workers, grace_s = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

def loop(config):
    rank = train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, f"rank-{rank}-0").write_text("step 1")
        train.report({}, train.Checkpoint(directory), checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
    try:
        (base / f"up-{rank}").touch()  # the signal may come before this line has ended
        time.sleep(600)
    finally:
        (base / f"unwound-{rank}").touch()

try:
    train.DataParallelTrainer(
        loop,
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(name="run", storage_path=url, progress="quiet", stop_grace_s=grace_s),
    ).fit()
except train.TrainingInterrupted as error:
    print("interrupted", error.result.checkpoint and error.result.checkpoint.path, flush=True)
"""


@contextlib.contextmanager
def stopped_driver(tmp_path, url, workers, grace_s=600.0):
    """A driver whose workers have each made their report."""
    (tmp_path / "script.py").write_text(STOPPED)
    with Driver(tmp_path / "script.py", url, tmp_path, workers, grace_s) as driver:
        driver.await_file(*files_of_ranks(tmp_path, "up", workers))
        yield driver


def files_of_ranks(base, name, workers):
    return [base / f"{name}-{rank}" for rank in range(max(1, workers))]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_on_its_way_when_the_driver_is_told_to_end_is_finished_and_resumed_from(
    server, proxy, bucket, url, behind, tmp_path, signum, workers
):
    hold = held(proxy)
    with stopped_driver(tmp_path, url, workers) as driver:
        driver.send_signal(signum)
        driver.await_file(*files_of_ranks(tmp_path, "unwound", workers))
        assert train.Run(behind).checkpoints == []
        hold.set()
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out.split()[0] == "interrupted"
    assert out.split()[1].endswith("/run/checkpoint_000001")
    assert driver.returncode == 0
    assert_only(server, bucket, behind, ["checkpoint_000001"])
    expected = whole(1) if workers else {"rank-0-0": "step 1"}
    assert fit(lambda config: restored(), url, workers=1).return_value == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("grace_s", "signals"), [(600.0, 2), (0.3, 1)])
def test_a_store_that_does_not_answer_holds_up_the_end_no_longer_than_a_request_may_take(
    server, proxy, bucket, url, behind, tmp_path, workers, grace_s, signals
):
    proxy.fail(Fault("PUT", FIRST, times=-1, stalls=True))
    # A request on its way cannot be broken off: it ends by its own limits, which are a minute or two unless told otherwise.
    quick = f"{url}&request_timeout=2&retry_timeout=2&max_retries=1"
    with stopped_driver(tmp_path, quick, workers, grace_s) as driver:
        await_requests(proxy, "PUT", FIRST)
        for _ in range(signals):
            driver.send_signal(signal.SIGINT)
            if signals > 1:
                driver.await_file(*files_of_ranks(tmp_path, "unwound", workers))
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out.split() == ["interrupted", "None"]
    proxy.heal()
    assert fit(lambda config: restored(), url, workers=1).return_value is None
    assert_only(server, bucket, behind, [])


def dies_while_it_hands_over(config):
    import holdfast.worker.handover as handover

    found = restored()
    if found is not None and found != whole(1):
        return found
    rank = train.get_context().get_world_rank()
    if Path(config["base"], "died").exists():
        report_step(3, 1).result(LIMIT_S)
        return found
    report_step(1).result(LIMIT_S)
    handover._PER_MESSAGE = 2
    send, count = handover._send, itertools.count(1)

    def dying(*arguments):
        if rank == 1 and next(count) == config["batch"]:
            die()
        send(*arguments)

    def die():
        await_file(Path(config["base"], "reported"))
        Path(config["base"], "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    handover._send = dying
    report_step(2, 5)
    if rank == 1:
        die()
    Path(config["base"], "reported").touch()
    time.sleep(60)
    return None


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_worker_killed_at_any_step_of_the_hand_over_leaves_a_whole_checkpoint_or_none(
    server, proxy, bucket, url, behind, tmp_path, batch
):
    result = fit(dies_while_it_hands_over, url, failures=1, config={"base": str(tmp_path), "batch": batch})
    if batch <= 3:  # five files are three batches
        assert result.return_value == whole(1)
        assert_only(server, bucket, behind, ["checkpoint_000001", "checkpoint_000003"])
    else:
        assert result.return_value == whole(2, 5)
        assert_only(server, bucket, behind, ["checkpoint_000001", "checkpoint_000002"])


def changes_a_file_after_its_report(config):
    base = Path(config["base"])
    rank = train.get_context().get_world_rank()
    directory = base / f"own-{rank}"
    directory.mkdir()
    with open(directory / f"weights-{rank}", "wb") as file:
        file.write(b"a" * 1000)
        file.truncate(config["size_bytes"])
    pending = train.report(
        {"step": 1},
        Checkpoint(str(directory)),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=False,
    )
    await_file(base / "being stored")
    if rank == 1:
        with open(directory / "weights-1", "r+b") as file:
            file.seek(config["size_bytes"] - 1)
            file.write(b"b")
        (base / "changed").touch()
    error = pending.exception(LIMIT_S)
    assert isinstance(error, train.ShardModifiedError), error
    with pytest.raises(train.ShardModifiedError, match=r"report 1 could not be stored.*weights-1"):
        train.report({"step": 2})  # on every rank alike
    report_step(3).result(LIMIT_S)


@pytest.mark.parametrize("size_bytes", [100_000, 41 << 20])
def test_a_file_that_changes_while_it_is_stored_fails_that_checkpoint_by_name(
    server, proxy, bucket, url, behind, tmp_path, size_bytes
):
    hold = held(proxy, f"{FIRST}weights-1")

    def let_go_when_it_is_changed():
        try:
            # Of the larger file four parts are on their way then, and two have not been read.
            await_requests(proxy, "PUT", f"{FIRST}weights-1", 1 if size_bytes < 1 << 20 else 4)
            (tmp_path / "being stored").touch()
            await_file(tmp_path / "changed")
        finally:
            hold.set()

    with beside(let_go_when_it_is_changed):
        fit(changes_a_file_after_its_report, url, config={"base": str(tmp_path), "size_bytes": size_bytes})
    assert_only(server, bucket, behind, ["checkpoint_000003"])
    assert [each.metrics["step"] for each in train.Run(behind).checkpoints] == [3]


def sees_a_refused_upload(config):
    found = restored()
    if found is not None:
        return found
    pending = report_step(1)
    Path(config["base"], f"reported-{train.get_context().get_world_rank()}").touch()
    if config["warns"]:
        train.report({"beside": 1})
        report_step(2).result(LIMIT_S)
        assert isinstance(pending.exception(LIMIT_S), StorageAccessError)
        return None
    error = pending.exception(LIMIT_S)
    assert isinstance(error, StorageAccessError), error
    with pytest.raises(StorageAccessError, match=r"report 1 could not be stored.*s3:PutObject"):
        train.report({"step": 2})  # on every rank alike
    report_step(3).result(LIMIT_S)
    return None


@pytest.mark.parametrize("what", ["", ".manifest.json"])
@pytest.mark.parametrize("warns", [False, True])
def test_an_upload_that_is_refused_is_told_of_at_the_next_report(
    server, proxy, bucket, url, behind, capfd, tmp_path, what, warns
):
    refused = threading.Event()
    proxy.fail(Fault("PUT", f"{FIRST}{what}", times=-1, answers=DENIED, waits_for=refused))
    config = {"warns": warns, "base": str(tmp_path)}

    def refuse_when_all_have_reported():
        try:
            for rank in (0, 1):
                await_file(tmp_path / f"reported-{rank}")
        finally:
            refused.set()

    options = {"on_upload_error": "warn", "progress": "plain"} if warns else {}
    with beside(refuse_when_all_have_reported):
        fit(sees_a_refused_upload, url, config=config, **options)
    if warns:
        assert "report 1 could not be stored" in capfd.readouterr().err
    assert_only(server, bucket, behind, ["checkpoint_000003"])
    assert fit(sees_a_refused_upload, url, config=config).return_value == whole(2 if warns else 3)


def ends_with_a_refused_upload(config):
    found = restored()
    if found is not None:
        return found
    report_step(1).result(LIMIT_S)
    report_step(2)
    return None


def test_an_upload_that_is_refused_after_the_last_report_fails_the_run(server, proxy, bucket, url, behind):
    proxy.fail(Fault("PUT", SECOND, times=-1, answers=DENIED))
    with pytest.raises(train.WorkerGroupError, match="report 2 could not be stored") as caught:
        fit(ends_with_a_refused_upload, url)
    assert all(isinstance(each, StorageAccessError) for each in caught.value.worker_failures.values())
    assert caught.value.result.checkpoint.path.endswith("/run/checkpoint_000001")
    assert_only(server, bucket, behind, ["checkpoint_000001"])
    # With an attempt left it goes on from the checkpoint before.
    assert fit(ends_with_a_refused_upload, url).return_value == whole(1)


def goes_on_when_keys_have_expired(config):
    found = restored()
    if found is not None:
        return found
    report_step(1).result(LIMIT_S)
    Path(config["base"], f"stored-{train.get_context().get_world_rank()}").touch()
    await_file(Path(config["base"], "expired"))
    report_step(2)
    for step in range(3, 100):
        report_step(step)
    return None


@pytest.mark.parametrize("workers", [0, 2])
def test_keys_that_expire_end_the_run_and_new_ones_resume_it(server, proxy, bucket, url, behind, tmp_path, workers):
    def expire():
        for rank in range(max(1, workers)):
            await_file(tmp_path / f"stored-{rank}")
        for method in ("PUT", "POST", "DELETE", "GET", "HEAD"):
            proxy.fail(Fault(method, times=-1, answers=answer(403, "ExpiredToken")))
        (tmp_path / "expired").touch()

    with beside(expire), pytest.raises(train.TrainingFailedError, match="StorageAccessError") as caught:
        fit(goes_on_when_keys_have_expired, url, workers=workers, config={"base": str(tmp_path)})
    assert caught.value.result.checkpoint.path.endswith("/run/checkpoint_000001")
    proxy.heal()
    expected = whole(1) if workers else {"rank-0-0": "step 1"}
    resumed = fit(goes_on_when_keys_have_expired, url, workers=workers, config={"base": str(tmp_path)})
    assert resumed.return_value == expected
    assert_only(server, bucket, behind, ["checkpoint_000001"])


def reports_scores(config):
    for loss, accuracy in config["scores"]:
        metrics = {"loss": loss} if accuracy is None else {"loss": loss, "accuracy": accuracy}
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "scores").write_text(repr((loss, accuracy)))
            train.report(metrics, Checkpoint(directory))


def kept_by(config, metrics):
    """What is to be kept of checkpoints, by their numbers: the best, and the latest."""
    key, sign = config.checkpoint_score_attribute, -1 if config.checkpoint_score_order == "min" else 1

    def rank(number):
        score = metrics[number].get(key, math.nan) if key else number
        return (not math.isnan(score), 0 if math.isnan(score) else sign * score, number)

    best = sorted(metrics, key=rank)[-config.num_to_keep :] if config.num_to_keep else metrics
    return {*best, max(metrics)}


def test_retention_that_changes_at_each_re_run_keeps_the_best_of_all_that_there_is(server, proxy, bucket, url, behind):
    nan = math.nan
    story = [
        (CheckpointConfig(), [(0.5, 0.2), (0.1, 0.9), (0.4, None), (nan, 0.95), (0.3, 0.1), (0.9, 0.8)]),
        (CheckpointConfig(5, "loss", "min"), [(0.8, 0.3)]),
        (CheckpointConfig(3, "accuracy", "max"), [(0.7, 0.0), (0.6, None)]),
        (CheckpointConfig(2, "loss", "max"), [(nan, 0.4)]),
    ]
    existing = {}
    number = 0
    for config, scores in story:
        # Opening the run deletes nothing, whatever the new configuration says.
        with contextlib.closing(open_run(open_store(behind), config)) as writer:
            assert names(writer) == [f"checkpoint_{each:06}" for each in existing]
        fit(reports_scores, url, workers=1, config={"scores": scores}, checkpoint_config=config)
        for loss, accuracy in scores:
            number += 1
            existing[number] = {"loss": loss} if accuracy is None else {"loss": loss, "accuracy": accuracy}
        kept = kept_by(config, existing)
        existing = {each: metrics for each, metrics in existing.items() if each in kept}
        assert_only(server, bucket, behind, [f"checkpoint_{each:06}" for each in existing])
