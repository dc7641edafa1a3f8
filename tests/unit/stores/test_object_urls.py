from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint import Checkpoint
from holdfast.config import RunConfig
from holdfast.errors import ConfigurationError, StorageError
from holdfast.secrecy import private_channel
from holdfast.stores import open_store
from holdfast.stores.object_keys import key_of, name_of
from holdfast.stores.object_url import Place, from_environment, parse_url
from holdfast.urls import check_url, shown_url


@pytest.mark.parametrize(
    ("url", "service", "bucket", "prefix", "shows"),
    [
        ("s3://bucket", "s3", "bucket", "", "s3://bucket"),
        ("s3://bucket/", "s3", "bucket", "", "s3://bucket"),
        ("S3://bucket/a//b/", "s3", "bucket", "a/b", "s3://bucket/a/b"),
        ("s3a://bucket/a#b", "s3", "bucket", "a#b", "s3a://bucket/a#b"),
        ("gs://bucket/a", "gs", "bucket", "a", "gs://bucket/a"),
        ("az://container/a?account_name=x", "az", "container", "a", "az://container/a"),
        (
            "abfss://container@account.dfs.core.windows.net/a",
            "az",
            "container",
            "a",
            "abfss://container@account.dfs.core.windows.net/a",
        ),
        ("s3://key:secret@bucket/a?region=x", "s3", "bucket", "a", "s3://bucket/a"),
    ],
)
def test_a_url_names_a_bucket_and_a_prefix(url: str, service: str, bucket: str, prefix: str, shows: str) -> None:
    place, found = parse_url(url)
    assert (place.service, place.bucket, found) == (service, bucket, prefix)
    assert open_store(url).url == shows


def test_a_key_before_the_account_of_azure_is_used_and_not_shown() -> None:
    """As pyarrow reads it."""
    url = "abfss://container:a%2Fkey==@account.dfs.core.windows.net/a"
    place, prefix = parse_url(url)
    assert (place.bucket, prefix) == ("container", "a")
    assert dict(place.options) == {"account_name": "account", "account_key": "a/key=="}
    assert place.secrets()[0] == "a/key=="
    assert open_store(url).url == shown_url(url) == "abfss://container@account.dfs.core.windows.net/a"


def test_a_plus_in_a_key_is_a_plus() -> None:
    for url in ("s3://KEY:a+b@bucket/a", "s3://bucket/a?access_key=KEY&secret_key=a+b"):
        assert parse_url(url)[0].option("secret_access_key") == "a+b"


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:THE/SECRET@bucket/a",
        "s3://KEY:/THESECRET@bucket/a",
        "s3://KEY:12/THESECRET@bucket/a",
        "S3://KEY:THE?SECRET@bucket/a",
        "s3://KEY:THESECRET/bucket/a",
        "s3a://KEY:THE#SECRET@bucket/a",
        "abfss://container:THE/SECRET==@account.dfs.core.windows.net/a",
        "abfss://account:THESECRET@container/a",
        "abfs://:THESECRET@account.blob.core.windows.net/container/a",
        "sftp://user:THE/SECRET@host/a",
        "ftp://user:THE?SECRET@host/a",
        "sftp://user:THESECRET/a",
        "https://user:THE/SECRET@host/a",
        "simplecache::s3://KEY:THE/SECRET@bucket/a",
        "file://user:SECRET@host/a",
        "s3://bucket/a?secret_key=THE&SECRET",
    ],
)
def test_a_password_that_would_be_taken_for_something_else_is_refused_and_not_quoted(url: str) -> None:
    for make in (open_store, Checkpoint):
        with pytest.raises(ConfigurationError) as caught:
            make(url)
        assert "SECRET" not in str(caught.value)
    with contextlib.suppress(ConfigurationError):
        assert "SECRET" not in repr(RunConfig(storage_path=url))


def test_a_password_in_a_url_that_was_made_a_path_is_not_quoted() -> None:
    with pytest.raises(ConfigurationError, match="pathlib") as caught:
        open_store(Path("s3://KEY:SECRET@bucket/a"))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sftp://user:word@host:22/home/me@there",
        "hdfs://host:8020/a@b",
        "sftp://[::1]:22/a",
        "memory://a:b/c",
        "s3://bucket/a@b:c",
    ],
)
def test_what_is_no_password_passes(url: str) -> None:
    check_url(url)


def test_options_are_those_that_users_of_pyarrow_write() -> None:
    place, _ = parse_url(
        "s3://user:pass%2Fword@b/x?endpoint_override=127.0.0.1:9000&scheme=http&region=r&anonymous=true"
        "&allow_bucket_creation=1&force_virtual_addressing=true"
    )
    assert dict(place.options) == {
        "access_key_id": "user",
        "secret_access_key": "pass/word",
        "endpoint": "http://127.0.0.1:9000",
        "region": "r",
        "skip_signature": "true",
        "allow_http": "true",
        "virtual_hosted_style_request": "true",
    }
    assert place.option("region") == "r"
    place, _ = parse_url(
        "gs://b/x?endpoint_override=127.0.0.1:4443&scheme=http&anonymous=true&retry_limit_seconds=9&project_id=p"
    )
    assert dict(place.options) == {
        "endpoint": "http://127.0.0.1:4443",
        "skip_signature": "true",
        "retry_timeout": "9",
        "allow_http": "true",
    }


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3:///x", "names no bucket"),
        ("s3://b/what?/exp", "A '.' begins the options of a URL"),
        ("s3://b/x?regoin=r", "'regoin', which is not known; there are: .*region.*did you mean .region.\\?"),
        ("s3://b/x?scheme=ftp", "http or https"),
        ("s3://b/x?anonymous=perhaps", "anonymous must be true or false"),
        ("s3://b/x?anon=perhaps", "anonymous must be true or false"),
        ("s3://b/x?acess_key=k", "there are: access_key, .*secret_key.*; did you mean 'access_key'\\?"),
        ("s3://b/x?aws_acces_key_id=k", "did you mean 'access_key'\\?"),
        ("s3://b/x?endpoint_ovrride=e", "anonymous, .*endpoint_override, .*; did you mean 'endpoint_override'\\?"),
        ("s3://b/x?anonymus=true", "did you mean 'anonymous'\\?"),
        ("az://b/x?acount_key=k", "there are: account_key, account_name, .*; did you mean 'account_key'\\?"),
        ("s3://b/x?request_timeout=soon", "must be a number"),
        ("gs://user:word@b/x", "no user and password"),
        ("s3://b/x/../y", "no name that an object store can hold"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, says: str) -> None:
    with pytest.raises((ConfigurationError, StorageError), match=says):
        open_store(url)


def test_the_environment_is_read_as_the_clouds_own_tools_read_it() -> None:
    nothing = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    found = from_environment(
        "s3", {"AWS_ENDPOINT_URL": "http://e", "AWS_DEFAULT_REGION": "r", "AWS_PROFILE": "p", **nothing}
    )
    assert found == {"endpoint": "http://e", "region": "r", "profile": "p"}
    assert (
        from_environment("s3", {"AWS_ENDPOINT_URL_S3": "http://s", "AWS_ENDPOINT_URL": "http://e", **nothing})[
            "endpoint"
        ]
        == "http://s"
    )
    assert from_environment("gs", {"AWS_REGION": "r"}) == {}
    assert from_environment("gs", {"GOOGLE_BASE_URL": "http://g"}) == {"endpoint": "http://g"}
    assert from_environment("az", {"AZURE_STORAGE_ENDPOINT": "http://a"}) == {"endpoint": "http://a"}


def test_a_store_is_what_its_url_says() -> None:
    store = open_store("s3://b/x?region=r&secret_key=THESECRET")
    with private_channel():
        again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert hash(again) == hash(store)
    assert store.child("y") == open_store("s3://b/x/y?secret_key=THESECRET&region=r")
    assert store != open_store("s3://b/x?region=other&secret_key=THESECRET")
    assert "THESECRET" not in repr(store) + repr(parse_url("s3://b/x?secret_key=THESECRET")[0])
    assert repr(Place("s3", "b", "s3://b", ())) == "Place('s3://b')"


_TEXTS = st.text(
    st.characters(codec="utf-8") | st.sampled_from("%\udc80\udcff\n\\.02579ACEFf"), min_size=1, max_size=20
)


@given(
    st.lists(_TEXTS.filter(lambda text: "/" not in text and text not in (".", "..")), min_size=1, max_size=3), _TEXTS
)
def test_every_key_has_a_name_of_its_own_and_comes_back(parts: list[str], other: str) -> None:
    key = "/".join(parts)
    name = name_of("some/prefix", key)
    name.encode()
    assert not any(ord(char) < 32 or ord(char) == 127 or char == "\\" for char in name)
    assert not any(part.endswith(".") for part in name.split("/"))
    assert key_of("some/prefix", name) == key
    if "/" not in other and other not in (".", ".."):
        assert (name_of("", other) == name_of("", key)) is (other == key)


@pytest.mark.parametrize("key", ["100%", "a%41", "a b", "ünïcödé", "a+b&c=d?e#f"])
def test_a_usual_name_stays_as_it_is(key: str) -> None:
    assert name_of("", key) == key


def test_too_long_a_name_is_refused() -> None:
    with pytest.raises(StorageError, match="1024 bytes"):
        name_of("", "ü" * 600)


@pytest.mark.parametrize(
    ("url", "shows"),
    [
        ("s3://key:sec@ret@b/x?secret_key=1", "s3://b/x"),
        ("abfss://container@account/x?sas_key=1", "abfss://container@account/x"),
        ("abfss://user:word@account/x", "abfss://user@account/x"),
        ("hdfs://user@host:9/x", "hdfs://host:9/x"),
        ("/a/path?x@y", "/a/path?x@y"),
        ("a/path://x@y", "a/path://x@y"),
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url: str, shows: str) -> None:
    assert shown_url(url) == shows


def test_the_configuration_of_a_run_shows_no_secret() -> None:
    config = RunConfig(storage_path="s3://key:word@b/x?secret_key=1", name="run")
    assert "RunConfig(name='run', storage_path='s3://b/x', " in repr(config)
    with pytest.raises(ConfigurationError) as caught:
        open_store("nosuch://key:word@b/x?secret_key=1")
    assert "word" not in str(caught.value)
    assert "secret_key" not in str(caught.value)


def test_a_url_that_was_made_a_path_is_not_taken_for_a_directory() -> None:
    with pytest.raises(ConfigurationError, match="pathlib"):
        open_store(Path("s3://bucket/x"))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://b/x?server_side_encryption=nonsense", "Invalid encryption type"),
        ("az://c/x", r"set AZURE_STORAGE_ACCOUNT_NAME, or give storage_options={\"account_name\": …}"),
        ("s3://b/x?access_key=AKEY", "an access key without its secret; give both: AWS_ACCESS_KEY_ID and AWS_SECRET"),
        ("s3://b/x?secret_key=ASECRET", "a secret without its access key; give both"),
        ("gs://b/x?service_account=/not/there", "correct GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://b/x?profile=not-there", "not-there"),
    ],
)
def test_options_that_no_client_can_be_made_of_are_refused_before_a_request(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="needs obstore, which is not installed: pip install obstore")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises((ConfigurationError, StorageError), match=says):
        open_store(url).read("a")
