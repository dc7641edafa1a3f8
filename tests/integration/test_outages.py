"""A bucket that is away for a while: a run waits for it, says so, and goes on; one that was never there is told of soon."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

import holdfast as train
from holdfast import Checkpoint, CheckpointUploadMode, DataParallelTrainer, RunConfig, ScalingConfig
from holdfast.errors import StorageAccessError, StorageUnavailableError
from holdfast.stores import open_store
from support.s3_proxy import Fault, Proxy
from support.s3_server import S3Server
from support.waiting import await_file, beside, wait_until

# Longer than eight quick tries with growing pauses take, with some luck.
AWAY_S = 15.0


def reports(config):
    for step in range(3):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "model").write_text(f"step {step}")
            train.report(
                {"step": step}, Checkpoint(directory), checkpoint_upload_mode=CheckpointUploadMode(config["mode"])
            )
        Path(config["base"], f"step-{step}").touch()


@pytest.mark.parametrize("mode", ["SYNC", pytest.param("ASYNC", marks=pytest.mark.slow)])
def test_a_run_waits_for_a_bucket_that_is_away_and_says_so(
    server: S3Server, proxy: Proxy, bucket: str, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    def cut() -> None:
        await_file(tmp_path / "step-0")
        proxy.fail(Fault(times=-1, cuts_request_at=0))
        try:
            time.sleep(AWAY_S)
            wait_until(lambda: "it is tried again until 120 s are over" in caplog.text, "it is told of")
        finally:
            proxy.heal()

    with beside(cut):
        DataParallelTrainer(
            reports,
            train_loop_config={"base": str(tmp_path), "mode": mode},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="run", storage_path=url, progress="plain"),
        ).fit()
    assert [each.metrics["step"] for each in train.Run(server.url(bucket, "exp/run")).checkpoints] == [0, 1, 2]
    assert f"127.0.0.1:{proxy.port}" in caplog.text


def test_a_bucket_that_never_answered_is_told_of_soon(monkeypatch: pytest.MonkeyPatch, keys: None) -> None:
    begin_s = time.monotonic()
    with pytest.raises(StorageUnavailableError, match="cannot be reached"):
        _ = train.Run("s3://bucket/run?endpoint_override=http://127.0.0.1:9").checkpoints
    assert time.monotonic() - begin_s < 100  # and not as long as one that is away


def test_a_server_that_answers_without_tls_is_told_of(server: S3Server, keys: None) -> None:
    url = f"s3://bucket/run?endpoint_override=https://127.0.0.1:{server.port}"
    with pytest.raises(StorageAccessError, match="answers without TLS; write its address as http://"):
        _ = train.Run(url).checkpoints


def test_a_server_that_says_nothing_is_told_of_long_before_it_is_given_up(
    server: S3Server, proxy: Proxy, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.url(bucket, "run", port=proxy.port, request_timeout="10")
    open_store(server.url(bucket, "run")).write(".holdfast/run.json", b"{}")
    proxy.fail(Fault(times=-1, stalls=True))

    def heal_once_told() -> None:
        try:
            wait_until(lambda: "has said nothing for" in caplog.text, "the silence is told of")
        finally:
            proxy.heal()

    with beside(heal_once_told):
        assert train.Run(url).name == "run"
    assert f"s3://{bucket}: http://127.0.0.1:{proxy.port} has said nothing for" in caplog.text
    assert "check the endpoint and the network" in caplog.text
