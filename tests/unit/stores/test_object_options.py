from __future__ import annotations

import pickle
from typing import Any

import pytest

from holdfast.config import RunConfig
from holdfast.errors import ConfigurationError
from holdfast.secrecy import private_channel
from holdfast.stores import open_store
from holdfast.stores.object_url import parse_url


@pytest.mark.parametrize(
    ("url", "given", "options"),
    [
        (
            "s3://b/x",
            {"aws_access_key_id": "me", "aws_secret_access_key": "word", "aws_region": "r", "endpoint": "http://e:9"},
            {
                "access_key_id": "me",
                "secret_access_key": "word",
                "region": "r",
                "endpoint": "http://e:9",
                "allow_http": "true",
            },
        ),
        (
            "s3://b/x",
            {
                "key": "me",
                "secret": "word",
                "token": "t",
                "client_kwargs": {"endpoint_url": "http://e:9", "region_name": "r"},
                "config_kwargs": {"s3": {"addressing_style": "virtual"}, "read_timeout": 7},
                "s3_additional_kwargs": {"ServerSideEncryption": "AES256"},
                "use_listings_cache": False,
            },
            {
                "access_key_id": "me",
                "secret_access_key": "word",
                "session_token": "t",
                "endpoint": "http://e:9",
                "allow_http": "true",
                "region": "r",
                "virtual_hosted_style_request": "true",
                "request_timeout": "7",
                "server_side_encryption": "AES256",
            },
        ),
        ("s3://b/x?endpoint_override=e:9", {"use_ssl": False}, {"endpoint": "http://e:9", "allow_http": "true"}),
        ("s3://b/x?region=of-the-url", {"anon": True, "region": "r"}, {"skip_signature": "true", "region": "r"}),
        ("gs://b/x", {"token": "anon", "project": "p"}, {"skip_signature": "true"}),
        ("gs://b/x", {"token": {"type": "service_account"}}, {"service_account_key": '{"type": "service_account"}'}),
        ("gs://b/x", {"token": "/key.json"}, {"service_account": "/key.json"}),
        ("gs://b/x", {"google_service_account": "/key.json"}, {"service_account": "/key.json"}),
        ("az://c/x", {"account_name": "n", "sas_token": "s"}, {"account_name": "n", "sas_key": "s"}),
        ("az://c/x", {"azure_storage_account_name": "n", "account_key": None}, {"account_name": "n"}),
    ],
)
def test_options_are_those_that_users_of_fsspec_and_obstore_write(
    url: str, given: dict[str, Any], options: dict[str, str]
) -> None:
    place, _ = parse_url(url, given)
    assert dict(place.options) == options


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kye": "THESECRET"}, "storage_options has the option 'kye', which is not known; there are: .*access_key"),
        ({"client_kwargs": {"endpoint": "x"}}, r"\['client_kwargs'\] has the option 'endpoint', .*endpoint_url"),
        ({"client_kwargs": 3}, "must be a dict"),
        ({"secret": ["THESECRET"]}, r"storage_options\['secret'\] must be a text"),
        ({"anon": "perhaps"}, "must be true or false"),
        ({3: "a"}, "names that are texts"),
    ],
)
def test_an_option_that_is_not_known_is_refused_at_once(given: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        open_store("s3://b/x", options=given)
    assert "THESECRET" not in str(caught.value)


def test_what_is_given_beside_a_url_is_the_same_as_in_it_and_is_not_shown() -> None:
    options = {"key": "THEKEY", "secret": "THESECRET"}
    store = open_store("s3://b/x", options=options)
    assert store == open_store("s3://b/x?access_key=THEKEY&secret_key=THESECRET")
    assert "THESECRET" not in f"{store!r}{RunConfig(storage_path='s3://b/x', storage_options=options)!r}"
    assert b"THESECRET" not in pickle.dumps(store)
    with private_channel():
        assert pickle.loads(pickle.dumps(store)) == store
