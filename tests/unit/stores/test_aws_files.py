from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.stores.aws_files import has_keys, profile_of
from holdfast.stores.object_url import from_environment

_CONFIG = """
[default]
region = eu-west-3
endpoint_url = http://default
[profile plain]
region = us-west-2
[profile 'two words']
role_arn = arn:aws:iam::1:role/r
services = mine
endpoint_url = http://for-all
[services mine]
sts =
  endpoint_url = http://sts
s3 =
  addressing_style = path
  endpoint_url = http://s3?a=b
"""
_CREDENTIALS = """
[default]
aws_access_key_id = KEY
aws_secret_access_key = 100%
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config").write_text(_CONFIG)
    (tmp_path / "credentials").write_text(_CREDENTIALS)
    return {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}


def test_a_profile_is_what_both_files_say(files: dict[str, str]) -> None:
    found = profile_of(files, None)
    assert found["aws_secret_access_key"] == "100%"
    assert (found["region"], found["endpoint_url"]) == ("eu-west-3", "http://default")
    assert has_keys(found)
    assert profile_of(files, "plain") == {"region": "us-west-2"}
    assert not has_keys(profile_of(files, "plain"))
    assert profile_of(files, "another") == {}
    found = profile_of(files, "two words")
    assert found["endpoint_url"] == "http://s3?a=b"
    assert has_keys(found)


def test_the_environment_wins_over_the_files(files: dict[str, str]) -> None:
    assert from_environment("s3", files) == {"endpoint": "http://default", "region": "eu-west-3"}
    assert from_environment("s3", files, "plain") == {"region": "us-west-2"}
    assert from_environment("s3", {**files, "AWS_PROFILE": "plain"}) == {"region": "us-west-2", "profile": "plain"}
    found = from_environment("s3", {**files, "AWS_ENDPOINT_URL": "http://e", "AWS_REGION": "r"})
    assert found == {"endpoint": "http://e", "region": "r"}
    ignores = {**files, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    assert from_environment("s3", ignores) == {"region": "eu-west-3"}
    assert from_environment("gs", files) == {}


@pytest.mark.parametrize("text", ["no section = 1", "[a 'b]\nc = d", "\xff[", "[default]\ns3"])
def test_what_is_no_such_file_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "torn").write_text(text, encoding="latin-1")
    assert (
        profile_of(dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), str(tmp_path / "torn")), None)
        == {}
    )
