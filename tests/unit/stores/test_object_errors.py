from __future__ import annotations

import pytest

from holdfast.errors import StorageAccessError, StorageError, StoreNotFoundError
from holdfast.stores.object_errors import object_error

_AZURE = "Server returned error response: <Error><Code>{}</Code><Message>text</Message></Error>, status: {}"


def _error(detail: str, *, is_anonymous: bool, service: str = "s3") -> StorageError:
    return object_error(
        "read",
        "s3://bucket/a",
        RuntimeError(detail),
        service=service,
        endpoint="there",
        secrets=[],
        is_anonymous=is_anonymous,
    )


@pytest.mark.parametrize(
    "detail",
    [
        "Server returned non-2xx status code: 400 Bad Request: ",
        _AZURE.format("PublicAccessNotPermitted", "409 Conflict"),
        _AZURE.format("NoAuthenticationInformation", "401 Unauthorized"),
    ],
)
def test_who_is_refused_for_want_of_credentials_is_told_so(detail: str) -> None:
    found = _error(detail, is_anonymous=True, service="az")
    assert type(found) is StorageAccessError
    assert "anonymous=true sends no credentials" in str(found)
    assert "AZURE_STORAGE_ACCOUNT_NAME" in str(found)
    assert "anonymous" not in str(_error(detail, is_anonymous=False, service="az"))


def test_what_has_to_do_with_no_credentials_is_told_as_always() -> None:
    detail = "<Error><Code>NoSuchBucket</Code></Error> status: 404"
    assert "there is no such bucket" in str(_error(detail, is_anonymous=True))
    assert type(_error("status: 404", is_anonymous=True)) is StoreNotFoundError
    assert "anonymous" not in str(_error("<Code>InvalidBucketName</Code> status: 400", is_anonymous=True))
