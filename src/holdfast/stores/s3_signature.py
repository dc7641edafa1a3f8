"""Signs a request to S3 that the client library has no call for.

Signature Version 4, as Amazon's documentation has it:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import urllib.parse
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Keys:
    """Who asks.

    Attributes:
        token: Of a session, where the keys are for a while only.
    """

    access_key_id: str
    secret_access_key: str
    token: str | None = None


def signed_headers(method: str, url: str, keys: Keys, *, region: str, body: bytes = b"") -> dict[str, str]:
    """The headers that sign a request; whoever sends it adds `Host`.

    Args:
        url: As it is sent: its path and its query are encoded.
    """
    parts = urllib.parse.urlsplit(url)
    now = datetime.datetime.now(datetime.UTC)
    time_text, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    pairs = sorted(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    body_digest = hashlib.sha256(body).hexdigest()
    headers = {"host": parts.netloc.rpartition("@")[2], "x-amz-content-sha256": body_digest, "x-amz-date": time_text}
    if keys.token:
        headers["x-amz-security-token"] = keys.token
    names = ";".join(headers)
    canonical = "\n".join(
        [
            method,
            parts.path or "/",
            "&".join(f"{encoded(name, safe='')}={encoded(value, safe='')}" for name, value in pairs),
            *(f"{name}:{value}" for name, value in headers.items()),
            "",
            names,
            body_digest,
        ]
    )
    scope = f"{day}/{region}/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{time_text}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    del headers["host"]
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key_id}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return headers


def encoded(text: str, *, safe: str = "/") -> str:
    """As the signature wants a path (or with `safe=""` a query's part) to be encoded."""
    return urllib.parse.quote(text, safe=f"{safe}~", errors="surrogatepass")
