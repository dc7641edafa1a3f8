"""Uploads in parts that were begun and neither completed nor given up: unseen, paid for, and possibly completed late.

The library ends its own when they fail. Those of a process that was killed stay, and it has no call to find them, so S3 is
asked here. Azure drops such parts by itself after a week; of Google Cloud's the library does not give the credentials.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from holdfast.errors import StorageAccessError, StorageUnavailableError
from holdfast.stores.object_client import Client
from holdfast.stores.object_url import from_environment, is_on
from holdfast.stores.s3_signature import Keys, encoded, signed_headers

_log = logging.getLogger("holdfast")
_TIMEOUT_S = 30.0
_PAUSES_S = (0.3, 1.5)
_MOST_UPLOADS = 100_000
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


def give_up_uploads(client: Client, prefix: str) -> None:
    """Ends all that were begun below a prefix; whoever would still complete one of them fails.

    Nothing where the service is not asked so, or says that this user may not ask: what is left then only costs.

    Raises:
        StorageError: The service did not say.
    """
    if client.place.service != "s3":
        return
    bucket = _Bucket.of(client)
    if bucket is None:
        return
    given_up: set[_Upload] = set()
    try:
        # A server may go on to list one that it has ended, or that it cannot end.
        while uploads := set(bucket.uploads(prefix)) - given_up:
            for upload in uploads:
                bucket.give_up(upload)
            given_up |= uploads
            if len(given_up) > _MOST_UPLOADS:
                break
    except _RefusedError as error:
        _log.info("%s: uploads of a process that ended are not looked for: %s", bucket.place(prefix), error)
    if given_up:
        _log.info("%s: %d uploads of a process that ended were given up", bucket.place(prefix), len(given_up))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What signs a request is not for other hosts."""

    def redirect_request(self, *_: object) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


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
    def of(cls, client: Client) -> _Bucket | None:
        """None where nobody here knows the keys, or how the bucket is asked."""
        place = client.place
        options = {**from_environment("s3", os.environ, place.option("profile")), **dict(place.options)}

        def is_set(name: str) -> bool:
            # Those of the environment the library reads by itself.
            return is_on(options.get(name) or os.environ.get(f"AWS_{name.upper()}"))

        if is_set("s3_express") or is_set("request_payer"):
            return None
        keys, region = None, options.get("region")
        if not is_set("skip_signature"):
            keys, own_region = _keys(client)
            if keys is None:
                return None
            region = region or own_region
        region = region or _DEFAULT_REGION
        endpoint = urllib.parse.urlsplit(options.get("endpoint") or "")
        url = endpoint._replace(netloc=endpoint.netloc.rpartition("@")[2]).geturl().rstrip("/")
        if is_set("virtual_hosted_style_request"):
            url = url or f"https://{place.bucket}.s3.{region}.amazonaws.com"
        else:
            url = f"{url or f'https://s3.{region}.amazonaws.com'}/{place.bucket}"
        timeout_s = min(_TIMEOUT_S, float(options.get("request_timeout", _TIMEOUT_S)))
        return cls(url, place.root, region, keys, timeout_s)

    def place(self, prefix: str) -> str:
        """As a person reads it."""
        return f"{self.root}/{prefix}"

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
        for pause_s in _PAUSES_S:
            with contextlib.suppress(StorageUnavailableError):
                return self._ask_once(method, what)
            time.sleep(pause_s)
        return self._ask_once(method, what)

    def _ask_once(self, method: str, what: str) -> bytes:
        url = f"{self.url}{what}"
        headers = signed_headers(method, url, self.keys, region=self.region) if self.keys is not None else {}
        request = urllib.request.Request(url, method=method, headers=headers)
        try:
            with _opener.open(request, timeout=self.timeout_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                status = error.code
            if method == "DELETE" and status == _HTTP_NOT_FOUND:
                return b""  # it has ended meanwhile
            if status == _HTTP_TOO_MANY or (status >= _HTTP_SERVER_ERROR and status != _HTTP_NOT_IMPLEMENTED):
                raise self._unavailable(f"status {status}") from None
            raise _RefusedError(f"status {status}") from None
        except urllib.error.URLError as error:
            raise self._unavailable(str(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(type(error).__name__) from None

    def _unavailable(self, reason: str) -> StorageUnavailableError:
        return StorageUnavailableError(
            f"Cannot look for uploads that were not completed in {self.root!r}: the service did not answer ({reason}); try again"
        )


def _keys(client: Client) -> tuple[Keys | None, str | None]:
    """The keys of the bucket's user, and the region that belongs to them.

    Raises:
        StorageAccessError: What gives them has failed.
    """
    environment = os.environ
    provider = client.provider()
    if provider is not None:
        try:
            found = provider()
        except Exception as error:  # noqa: BLE001 - boto3's errors are no business of this module, and may show what is secret
            raise StorageAccessError(
                f"Cannot look for uploads that were not completed in {client.place.root!r}: no credentials ({type(error).__name__})"
            ) from None
        keys = Keys(found["access_key_id"], found["secret_access_key"], found.get("token"))
        return keys, dict(getattr(provider, "config", None) or {}).get("region")
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        keys = Keys(
            environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], environment.get("AWS_SESSION_TOKEN")
        )
        return keys, None
    # Those of a role: the library keeps them to itself, and boto3 finds the same.
    try:
        session = importlib.import_module("boto3").Session()
        frozen = session.get_credentials().get_frozen_credentials()
    except Exception:  # noqa: BLE001 - not installed, no such role, a service that does not answer: nobody here knows any
        return None, None
    return Keys(frozen.access_key, frozen.secret_key, frozen.token), None
