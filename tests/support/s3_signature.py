"""Signs a request to S3, for what a test asks of a server and the library has no call for: buckets, policies.

Signature Version 4 as Amazon's documentation has it: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import urllib.parse

_REGION = "us-east-1"


def signed_headers(
    method: str, host: str, path: str, body: bytes, *, access_key: str, secret_key: str
) -> dict[str, str]:
    """The headers that sign a request.

    Args:
        path: With its query, as it is sent.
    """
    now = datetime.datetime.now(datetime.UTC)
    time_text, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    plain, _, query = path.partition("?")
    pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
    body_digest = hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": body_digest, "x-amz-date": time_text}
    names = ";".join(headers)
    canonical = "\n".join(
        [
            method,
            urllib.parse.quote(urllib.parse.unquote(plain), safe="/~"),
            "&".join(
                f"{urllib.parse.quote(name, safe='~')}={urllib.parse.quote(value, safe='~')}" for name, value in pairs
            ),
            *(f"{name}:{value}" for name, value in headers.items()),
            "",
            names,
            body_digest,
        ]
    )
    scope = f"{day}/{_REGION}/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{time_text}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    del headers["host"]  # whoever sends it adds it
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return headers
