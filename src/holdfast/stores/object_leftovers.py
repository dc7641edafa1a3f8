"""Uploads in parts that were begun and neither completed nor given up: unseen, paid for, and possibly completed late.

The library ends its own when they fail. Those of a process that was killed stay, and it has no call to find them, so S3 is
asked here. Azure drops such parts by itself after a week; of Google Cloud's the library does not give the credentials.
"""

from __future__ import annotations

import http.client
import importlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from holdfast.errors import StorageError, StorageUnavailableError
from holdfast.stores.object_given import given_credentials, profile_credentials
from holdfast.stores.object_url import Place, from_environment, is_on
from holdfast.stores.s3_signature import Keys, encoded, signed_headers

_log = logging.getLogger("holdfast")
_TIMEOUT_S = 30.0
_DEFAULT_REGION = "us-east-1"
_HTTP_NOT_FOUND = 404
_HTTP_TOO_MANY = 429
_HTTP_SERVER_ERROR = 500
_HTTP_NOT_IMPLEMENTED = 501


class _RefusedError(Exception):
    """The server does not do this, for this user or at all."""


@dataclass(frozen=True)
class _Upload:
    name: str
    id: str


def give_up_uploads(place: Place, prefix: str) -> None:
    """Ends all that were begun below a prefix; whoever would still complete one of them fails.

    Nothing where the service is not asked so, or says that this user may not ask: what is left then only costs.

    Raises:
        StorageError: The service did not say.
    """
    if place.service != "s3":
        return
    bucket = _Bucket.of(place)
    if bucket is None:
        return
    try:
        while uploads := list(bucket.uploads(prefix)):
            for upload in uploads:
                bucket.give_up(upload)
            _log.info("%s/%s: %d uploads of a process that ended were given up", place.root, prefix, len(uploads))
    except _RefusedError as error:
        _log.info("%s/%s: uploads of a process that ended are not looked for: %s", place.root, prefix, error)


@dataclass(frozen=True)
class _Bucket:
    """A bucket of S3, asked without the library.

    Attributes:
        keys: None for one that anybody may write.
    """

    url: str
    root: str
    region: str
    keys: Keys | None
    timeout_s: float

    @classmethod
    def of(cls, place: Place) -> _Bucket | None:
        """None where nobody here knows the keys, or how the bucket is asked."""
        options = {**from_environment("s3", os.environ), **dict(place.options)}
        if is_on(options.get("s3_express")):
            return None
        keys = None
        if not is_on(options.get("skip_signature")):
            keys = _keys(place, options.get("profile"))
            if keys is None:
                return None
        region = options.get("region") or _DEFAULT_REGION
        if is_on(options.get("virtual_hosted_style_request")):
            url = options.get("endpoint") or f"https://{place.bucket}.s3.{region}.amazonaws.com"
        else:
            url = f"{(options.get('endpoint') or f'https://s3.{region}.amazonaws.com').rstrip('/')}/{place.bucket}"
        timeout_s = min(_TIMEOUT_S, float(options.get("request_timeout", _TIMEOUT_S)))
        return cls(url.rstrip("/"), place.root, region, keys, timeout_s)

    def uploads(self, prefix: str) -> Iterator[_Upload]:
        """The first thousand, or fewer; none when all have ended."""
        answer = self._ask("GET", f"?prefix={encoded(f'{prefix}/', safe='')}&uploads=")
        try:
            found = ElementTree.fromstring(answer)
        except ElementTree.ParseError:
            raise _RefusedError("the answer is not one of S3's") from None
        for each in found.iter():
            if each.tag.rpartition("}")[2] != "Upload":
                continue
            texts = {child.tag.rpartition("}")[2]: child.text or "" for child in each}
            # Not every server heeds the prefix.
            if texts.get("Key", "").startswith(f"{prefix}/") and texts.get("UploadId"):
                yield _Upload(texts["Key"], texts["UploadId"])

    def give_up(self, upload: _Upload) -> None:
        self._ask("DELETE", f"/{encoded(upload.name)}?uploadId={encoded(upload.id, safe='')}")

    def _ask(self, method: str, what: str) -> bytes:
        url = f"{self.url}{what}"
        headers = signed_headers(method, url, self.keys, region=self.region) if self.keys is not None else {}
        request = urllib.request.Request(url, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                status = error.code
            if method == "DELETE" and status == _HTTP_NOT_FOUND:
                return b""  # it has ended meanwhile
            if status == _HTTP_TOO_MANY or (status >= _HTTP_SERVER_ERROR and status != _HTTP_NOT_IMPLEMENTED):
                raise self._error(f"status {status}") from None
            raise _RefusedError(f"status {status}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._error(type(error).__name__) from None

    def _error(self, reason: str) -> StorageError:
        return StorageUnavailableError(
            f"Cannot look for uploads that were not completed in {self.root!r}: the service did not answer ({reason}); try again"
        )


def _keys(place: Place, profile: str | None) -> Keys | None:
    environment = os.environ
    provider = given_credentials(place) or profile_credentials(place, profile)
    if provider is not None:
        found = provider()
        return Keys(found["access_key_id"], found["secret_access_key"], found.get("token"))
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return Keys(
            environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], environment.get("AWS_SESSION_TOKEN")
        )
    # Those of a role: the library keeps them to itself, and boto3 finds the same.
    try:
        session = importlib.import_module("boto3").Session()
        frozen = session.get_credentials().get_frozen_credentials()
    except Exception:  # noqa: BLE001 - not installed, no such role, a service that does not answer: nobody here knows any
        return None
    return Keys(frozen.access_key, frozen.secret_key, frozen.token)
