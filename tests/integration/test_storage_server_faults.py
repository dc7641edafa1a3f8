"""What real servers say to what cannot work, and that it becomes an error which names the remedy and leaves nothing behind."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import cloudpickle
import pytest

import holdfast as train
from holdfast.errors import StorageAccessError, StorageError, StoreNotFoundError
from holdfast.stores import open_store
from holdfast.testing.store import put
from support.ceph import CephServer
from support.gcs_server import GoogleServer
from support.runs import open_run, report
from support.waiting import await_file, beside

# Functions travel by value: this module cannot be imported by a worker.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_a_bucket_that_is_not_there_is_told_of_by_every_operation(object_server, tmp_path):
    store = open_store(object_server.url("not-made", "run"))
    for operation in (
        store.prepare,
        lambda: store.read("a"),
        lambda: store.open_read("a"),
        lambda: store.exists("a"),
        lambda: list(store.list()),
        lambda: list(store.list(recursive=True)),
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: put(store, "a", tmp_path, b"small"),
        lambda: put(store, "a", tmp_path, bytes(9 << 20)),
        lambda: store.delete_tree("a"),
    ):
        with pytest.raises(StorageAccessError, match=r"there is no such (bucket|container)") as caught:
            operation()
        assert f"{store.url.partition('://')[0]}://not-made" in str(caught.value)
        assert "\n" not in str(caught.value)
    for operation in (lambda: train.Run(object_server.url("not-made", "run")).checkpoints, lambda: open_run(store)):
        with pytest.raises(StorageAccessError, match=r"there is no such (bucket|container)"):
            operation()


@pytest.mark.parametrize(
    ("fixture", "options", "says"),
    [
        ("ceph", {"access_key_id": "key-of-nobody", "secret_access_key": "WRONGSECRET"}, "correct AWS_ACCESS_KEY_ID"),
        ("ceph", {"access_key_id": "test-access-key", "secret_access_key": "WRONGSECRET"}, "AWS_SECRET_ACCESS_KEY"),
        ("rclone", {"access_key_id": "key-of-nobody", "secret_access_key": "WRONGSECRET"}, "correct AWS_ACCESS_KEY_ID"),
        ("rclone", {"access_key_id": "test-access-key", "secret_access_key": "WRONGSECRET"}, "AWS_SECRET_ACCESS_KEY"),
        ("azurite", {"account_key": "V1JPTkdTRUNSRVQ="}, "correct .*AZURE_STORAGE_ACCOUNT_KEY"),
        ("google", {"bearer_token": "WRONGSECRET"}, "correct GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_wrong_credentials_are_told_of_and_not_shown(request, monkeypatch, fixture, options, says):
    server = request.getfixturevalue(fixture)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(server.url(server.make_bucket(), "run"), options=options)
    with pytest.raises(StorageAccessError, match=says) as caught:
        store.prepare()
    with pytest.raises(StorageAccessError):
        store.exists("a")
    assert not any(secret in str(caught.value) for secret in ("WRONGSECRET", "V1JPTkdTRUNSRVQ="))


def _policy(bucket: str, *actions: str) -> bytes:
    """Lets another user do these things."""
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": ["arn:aws:iam:::user/other"]},
                    "Action": [f"s3:{action}" for action in actions],
                    "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                }
            ],
        }
    ).encode()


@pytest.fixture(scope="module")
def other_user(ceph: CephServer) -> Mapping[str, str]:
    keys = ceph.add_user("other")
    return {"access_key_id": keys["AWS_ACCESS_KEY_ID"], "secret_access_key": keys["AWS_SECRET_ACCESS_KEY"]}


@pytest.fixture
def shared_bucket(ceph: CephServer, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    return ceph.make_bucket()


_READING = ("GetObject", "ListBucket")
_WRITING = ("PutObject", "AbortMultipartUpload")


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        ((), "Cannot write to"),
        (_READING, "Cannot write to"),
        ((*_WRITING, "GetObject", "DeleteObject"), "Cannot list"),
        ((*_WRITING, *_READING), "Cannot delete from"),
    ],
    ids=["none", "read-only", "no-list", "no-delete"],
)
def test_a_right_that_is_missing_is_told_of_at_the_start(ceph, other_user, shared_bucket, rights, says):
    if rights:
        ceph.request("PUT", f"/{shared_bucket}?policy", _policy(shared_bucket, *rights))
    store = open_store(ceph.url(shared_bucket, "run"), options=other_user)
    with pytest.raises(StorageAccessError, match=f"{says}.*they need s3:GetObject, s3:PutObject"):
        store.prepare()


def test_a_run_in_a_bucket_that_may_only_be_read_can_be_read(ceph, other_user, shared_bucket, tmp_path):
    url = ceph.url(shared_bucket, "run")
    writer = open_run(url)
    report(writer, tmp_path, {"model": b"weights"}, {"loss": 1.0})
    writer.close()
    ceph.request("PUT", f"/{shared_bucket}?policy", _policy(shared_bucket, *_READING))
    run = train.Run(url, storage_options=other_user)
    (checkpoint,) = run.checkpoints
    assert checkpoint.metrics == {"loss": 1.0}
    with checkpoint.checkpoint.as_directory() as directory:
        assert Path(directory, "model").read_bytes() == b"weights"
    assert not any(run.verify().values())
    with pytest.raises(StorageAccessError, match="they need s3:GetObject, s3:PutObject"):
        open_run(open_store(url, options=other_user))
    # It was refused before it changed anything.
    assert len(train.Run(url).checkpoints) == 1
    assert train.Run(url).driver is None


@pytest.mark.parametrize(
    ("right", "says"), [("write", "Cannot write to"), ("list", "Cannot list"), ("delete", "Cannot delete from")]
)
def test_a_right_that_is_missing_at_google_is_told_of_at_the_start(google: GoogleServer, monkeypatch, right, says):
    for name, value in google.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(google.url(google.make_bucket(), "run"))
    monkeypatch.setattr(google, "denied", {right})
    with pytest.raises(StorageAccessError, match=f"{says}.*they need the role Storage Object User"):
        store.prepare()


def report_and_wait(config):
    with tempfile.TemporaryDirectory() as directory:
        for step in range(100):
            Path(directory, "model").write_text(str(step))
            train.report({"step": step}, train.Checkpoint(directory))
            if step == 0:
                Path(config["base"], "stored").touch()
            if step:
                time.sleep(0.05)


def test_a_bucket_that_vanishes_ends_the_run(google: GoogleServer, monkeypatch, tmp_path):
    for name, value in google.environment.items():
        monkeypatch.setenv(name, value)
    bucket = google.make_bucket()

    def remove():
        await_file(tmp_path / "stored")
        del google.buckets[bucket]

    with beside(remove), pytest.raises(train.TrainingFailedError, match="there is no such bucket") as caught:
        train.DataParallelTrainer(
            report_and_wait,
            train_loop_config={"base": str(tmp_path)},
            run_config=train.RunConfig(name="run", storage_path=google.url(bucket, "exp"), progress="quiet"),
        ).fit()
    assert caught.value.result.metrics["step"] >= 0


def report_a_file_and_a_directory(config):
    rank = train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a" if rank == 0 else "a/b")
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
        with pytest.raises(train.ShardCollisionError, match=r"'a' as a file .*'a/b'"):
            train.report({}, train.Checkpoint(directory))


@pytest.mark.parametrize("fixture", ["ceph", "azurite", "google"])
def test_a_name_that_is_a_directory_elsewhere_makes_no_checkpoint(request, monkeypatch, fixture):
    """For a bucket both are objects; no directory could hold them."""
    server = request.getfixturevalue(fixture)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = server.make_bucket()
    train.DataParallelTrainer(
        report_a_file_and_a_directory,
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(name="run", storage_path=server.url(bucket, "exp"), progress="quiet"),
    ).fit()
    assert train.Run(server.url(bucket, "exp/run")).checkpoints == []
    assert not any("checkpoint_" in entry.key for entry in open_store(server.url(bucket, "exp")).list(recursive=True))


def test_a_file_below_a_file_is_refused_where_keys_are_paths(rclone, monkeypatch):
    for name, value in rclone.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(rclone.url(rclone.make_bucket(), "run", max_retries="0"))
    store.write("a", b"1")
    with pytest.raises(StorageError, match=r"Cannot write .*a/b"):
        store.write("a/b", b"2")
    assert store.read("a") == b"1"
    with pytest.raises(StoreNotFoundError):
        store.read("a/b")
