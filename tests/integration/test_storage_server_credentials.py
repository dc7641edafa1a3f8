"""Credentials that are given with a URL are those that are used, whatever the environment has."""

from __future__ import annotations

import pytest

from holdfast.errors import StorageAccessError
from holdfast.stores import open_store
from holdfast.stores.object_given import given_credentials
from holdfast.stores.object_url import parse_url
from support.azurite import KEY
from support.gcs_server import TOKEN
from support.s3_server import KEYS


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def test_a_session_token_of_the_environment_does_not_join_keys_of_a_url(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of something else")
    found = given_credentials(parse_url("s3://key:secret@bucket/run")[0])
    assert found is not None
    assert found() == {"access_key_id": "key", "secret_access_key": "secret", "token": None, "expires_at": None}
    assert given_credentials(parse_url("s3://bucket/run")[0]) is None


def test_a_signature_of_a_url_is_not_replaced_by_a_key_of_the_environment(azurite, monkeypatch):
    """It may be for less."""
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    url = azurite.url(azurite.make_bucket(), "run")
    open_store(url).prepare()
    with pytest.raises(StorageAccessError, match="the credentials are wrong") as caught:
        open_store(url, options={"sas_token": "sv=2023-11-03&se=2040-01-01&sr=c&sp=r&sig=V1JPTkc%3D"}).prepare()
    assert "V1JPTkc" not in str(caught.value)


def test_a_key_of_a_url_is_not_replaced_by_a_token_of_the_environment(azurite, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", azurite.environment["AZURE_STORAGE_ACCOUNT_NAME"])
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "of something else")
    store = open_store(azurite.url(azurite.make_bucket(), "run"), options={"account_key": KEY})
    store.prepare()
    store.write("a", b"1")
    assert store.read("a") == b"1"


def test_a_token_that_is_given_wins_over_the_environment(google, monkeypatch):
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "of something else")
    url = google.url(google.make_bucket(), "run")
    open_store(url, options={"bearer_token": TOKEN}).prepare()
    with pytest.raises(StorageAccessError):
        open_store(url).prepare()


def test_a_profile_that_is_given_wins_over_keys_of_the_environment(ceph, monkeypatch, tmp_path):
    pytest.importorskip("boto3", reason='needs boto3, which is not installed: pip install "boto3"')
    profiles = tmp_path / "credentials"
    profiles.write_text(
        f"[mine]\naws_access_key_id = {KEYS['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {KEYS['AWS_SECRET_ACCESS_KEY']}\n"
        "[theirs]\naws_access_key_id = key-of-nobody\naws_secret_access_key = secret-of-nobody\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    bucket = ceph.make_bucket()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-somebody")
    open_store(ceph.url(bucket, "run", profile="mine")).prepare()
    with pytest.raises(StorageAccessError, match="no such access key"):
        open_store(ceph.url(bucket, "run", profile="theirs")).prepare()
    # One of the environment does not, as in Amazon's own tools.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["AWS_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_PROFILE", "theirs")
    open_store(ceph.url(bucket, "run")).prepare()


def test_the_default_profile_counts_where_nothing_else_has_keys(ceph, monkeypatch, tmp_path):
    """As after a plain `aws configure`, with the endpoint in its file."""
    pytest.importorskip("boto3", reason='needs boto3, which is not installed: pip install "boto3"')
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {ceph.endpoint}\n")
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = {KEYS['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {KEYS['AWS_SECRET_ACCESS_KEY']}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    store = open_store(f"s3://{ceph.make_bucket()}/run")
    store.prepare()
    assert list(store.list()) == []


def test_a_bucket_that_is_not_public_says_so_to_who_has_no_credentials(object_server):
    url = object_server.url(object_server.make_bucket(), "run")
    open_store(url).write("there", b"1")
    anonymous = open_store(f"{url}&anonymous=true")
    for call in (
        lambda: list(anonymous.list()),
        lambda: anonymous.exists("there"),
        lambda: anonymous.read("there"),
        anonymous.prepare,
    ):
        with pytest.raises(
            StorageAccessError, match=r"anonymous=true sends no credentials.*; leave it out, and set [A-Z_]+"
        ):
            call()
