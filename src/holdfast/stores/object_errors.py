"""Turns what obstore raises into a `StorageError` that says what to do.

obstore gives the kind of a failure by the class of its error, and all else in a text for programmers: the server's answer is in
it, with the code that tells an expired token from a missing right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from holdfast.errors import (
    StorageAccessError,
    StorageError,
    StorageInterruptedError,
    StorageUnavailableError,
    StoreExistsError,
    StoreNotFoundError,
)

_LONGEST_REASON = 400
_STATUS = re.compile(r"status(?: code)?: (\d{3})")
# In an answer; and as the library has it of an answer that was a success for some objects and none for others.
_CODE = re.compile(r'<Code>([^<]*)</Code>|\bcode: \\?"(\w+)')
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_REGION = re.compile(r"expecting \\?'([a-z0-9-]+)\\?'|<Region>([^<]*)</Region>")
# Where a machine of a cloud asks for its credentials: reached only when nothing else gave any.
_CREDENTIAL_SERVICES = (
    "169.254.169.254", "169.254.170.2", "/latest/api/token", "/latest/meta-data/", "metadata.google.internal",
    "/metadata/identity/",
)  # fmt: skip
_NO_CREDENTIALS = (
    "no credentials were found; set {variables}, or give the machine a role; for public data add "
    "?anonymous=true to the URL"
)
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "http": "the URL",
}
# What the library misses when a client is made: its word for it, and who may be meant to say it.
_MISSING = {
    "Account must be specified": 'no storage account is named; set AZURE_STORAGE_ACCOUNT_NAME, or give storage_options={"account_name": …}',
    "Missing SecretAccessKey": "there is an access key without its secret; give both: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    'storage_options={"access_key": …, "secret_key": …}',
    "Missing AccessKeyId": "there is a secret without its access key; give both: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    'storage_options={"access_key": …, "secret_key": …}',
    "service account file": "the service account cannot be read; correct GOOGLE_APPLICATION_CREDENTIALS (or GOOGLE_SERVICE_ACCOUNT), or give "
    'storage_options={"service_account": "a file"}',
}
_RIGHTS = {
    "s3": "s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket",
    "gs": "the role Storage Object User",
    "az": "the role Storage Blob Data Contributor",
    "http": "the right to read",
}
# What a server's code asks of its user. Those of S3 first; Azure's and Google's where they have their own.
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket; make it, or correct its name (and the region or endpoint)",
    "ContainerNotFound": "there is no such container; make it, or correct its name",
    "ExpiredToken": "the session token has expired; get new credentials (long jobs need a role or a profile, which renew)",
    "TokenRefreshRequired": "the session token has expired; get new credentials",
    "InvalidToken": "the session token is not valid; get new credentials",
    "InvalidAccessKeyId": "there is no such access key; correct AWS_ACCESS_KEY_ID, or what the URL or storage_options say of it",
    "SignatureDoesNotMatch": "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY, or what the URL or storage_options say of it",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "AuthenticationFailed": "the credentials are wrong; correct them",
    "AccountProblem": "the account is blocked; ask the provider",
    "AllAccessDisabled": "the bucket is blocked; ask its owner",
}
_WRONG_REGION = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "TemporaryRedirect"}
)
# Azure says so of a wrong key under several codes, one of which is also that of a network that may not.
_NOT_AUTHENTICATED = "failed to authenticate the request"
_BARE_REDIRECT = "redirect without LOCATION"
# Two conditional writes met: neither is known to have won. Asked again, the store says which.
# How servers refuse who says nothing of who he is; some with what else is a bad request, or with no code at all.
_ANONYMOUS_CODES = frozenset(
    {
        "UnsupportedAlgorithm", "InvalidRequest", "MissingSecurityHeader", "NoAuthenticationInformation", "PublicAccessNotPermitted",
        "AuthenticationRequired", "AccessDenied",
    }
)  # fmt: skip
_CONFLICTS = frozenset({"ConditionalRequestConflict", "OperationAborted"})
_BUSY = frozenset(
    {"SlowDown", "ServiceUnavailable", "RequestTimeout", "InternalError", "ServerBusy", "OperationTimedOut"}
)
_TOO_FAST = frozenset({"SlowDown", "ServerBusy", "TooManyRequests", "ThrottlingException"})
_NO_CONNECTION = (
    "ConnectionRefused",
    "Connect,",
    "kind: Connect",
    "dns error",
    "failed to lookup",
    "error trying to connect",
)
# With the reason as the last word: UnknownIssuer, Expired, …
_BAD_CERTIFICATE = re.compile(r"InvalidCertificate\((?:\s*\w+\()*\s*(\w+)")
_NO_TLS = "InvalidContentType"
_NO_RANGES = ("non-partial response", "Range request not supported")
_TIMED_OUT = ("TimedOut", "operation timed out", "kind: Timeout")


def object_error(
    action: str,
    url: str,
    error: BaseException,
    *,
    service: str,
    endpoint: str,
    secrets: Sequence[str],
    is_anonymous: bool = False,
) -> StorageError:
    """The error to raise where `action` on `url` failed.

    It is to be raised `from None`: the text of the original may show what must not be shown.

    Args:
        action: What was tried, as in "Cannot <action> <url>".
        service: `s3`, `gs`, `az` or `http`.
        endpoint: What the client speaks to, as a person wants to read it.
        secrets: Texts that must not appear.
        is_anonymous: No credentials were sent, as the user said.
    """
    detail = str(error)
    status, code = _answer_in(detail)
    kind, remedy = _judge(type(error).__name__, detail, status, code, service, endpoint)
    if is_anonymous and (code in _ANONYMOUS_CODES or status in (401, 403) or (status == 400 and not code)):
        kind = StorageAccessError
        remedy = f"anonymous=true sends no credentials, and this is not open to everybody; leave it out, and set {_VARIABLES[service]}"
    if service == "http" and action == "list" and kind in (StorageError, StoreNotFoundError):
        # The library asks by PROPFIND, as WebDAV has it.
        kind, remedy = (
            StorageError,
            (
                "no checkpoint's manifest lies there, and a web server does not say what a directory holds; give the URL of a checkpoint"
            ),
        )
    reason = _hidden(_reason(detail, status, code), secrets)
    text = f"Cannot {action} {url!r}: {remedy}" if remedy else f"Cannot {action} {url!r}"
    return kind(f"{text} ({reason})" if reason else text)


def unusable(root: str, error: BaseException, secrets: Sequence[str]) -> str:
    """Why no client can be made for a bucket, and what to do, as a person wants to read it."""
    text = str(error)
    remedy = next((remedy for words, remedy in _MISSING.items() if words in text), None)
    remedy = remedy or "correct those of the URL, or the environment"
    return f"{root!r} cannot be used with these options: {plain_reason(error, secrets)}; {remedy}"


def has_no_ranges(text: str) -> bool:
    """Whether the library says that a server answers for a whole object where a part was asked for (rclone's, for one)."""
    return any(each in text for each in _NO_RANGES)


def is_throttled(error: BaseException) -> bool:
    """Whether a server says that requests come too fast."""
    status, code = _answer_in(str(error))
    return status in (429, 503) or code in _TOO_FAST


def is_timed_out(error: BaseException) -> bool:
    """Whether a request was not over when its time was."""
    return any(text in str(error) for text in _TIMED_OUT)


def _answer_in(detail: str) -> tuple[int | None, str]:
    """The status and the code that a server answered with, as far as the library's text has them."""
    status = int(found[1]) if (found := _STATUS.search(detail)) else None
    return status, found[1] or found[2] if (found := _CODE.search(detail)) else ""


def plain_reason(error: BaseException, secrets: Sequence[str]) -> str:
    """What an error says, short and without secrets."""
    return _hidden(_reason(str(error), None, ""), secrets)


def _judge(
    name: str, detail: str, status: int | None, code: str, service: str, endpoint: str
) -> tuple[type[StorageError], str]:
    if name == "BrokenOffError":
        return StorageInterruptedError, f"{endpoint} had not answered when the run was to end at once"
    if has_no_ranges(detail):
        return StorageError, f"{endpoint} does not answer a request for a part of it"
    if any(place in detail for place in _CREDENTIAL_SERVICES):
        files = "; profiles of ~/.aws are read where boto3 is installed" if service == "s3" else ""
        return StorageAccessError, _NO_CREDENTIALS.format(variables=_VARIABLES[service]) + files
    if code in _REMEDIES:
        return StorageAccessError, _REMEDIES[code]
    if code in _WRONG_REGION or _BARE_REDIRECT in detail:
        found = _REGION.search(detail)
        region = f"it is in {found[1] or found[2]}; " if found else ""
        return (
            StorageAccessError,
            f"the bucket is in another region; {region}set AWS_REGION, or add ?region=… to the URL",
        )
    if code in _CONFLICTS:
        return StorageUnavailableError, "another write to it is under way; try again"
    if code in _BUSY or status == 429 or (status is not None and status >= 500 and status != 501):
        return StorageUnavailableError, "the store is overloaded or out of order; try again later"
    # Not for every request does the library turn the status into a class of its own.
    if name in ("FileNotFoundError", "NotFoundError") or status == 404:
        return StoreNotFoundError, "there is no such object"
    if name in ("AlreadyExistsError", "PreconditionError") or status in (409, 412):
        return StoreExistsError, "something lies there"
    if _NOT_AUTHENTICATED in detail:
        return StorageAccessError, f"the credentials are wrong; correct {_VARIABLES[service]}"
    if name == "PermissionDeniedError" or status == 403 or code == "AccessDenied":
        # The answer to a look at an object has no body, and so no code.
        what = "these credentials may not" if code else "these credentials are wrong, or may not"
        return StorageAccessError, f"{what}; they need {_RIGHTS[service]}"
    if name == "UnauthenticatedError" or status == 401:
        return StorageAccessError, f"the credentials are missing or wrong; correct {_VARIABLES[service]}"
    if name in ("NotSupportedError", "NotImplementedError") or status == 501:
        return StorageError, "this store does not support it"
    return (StorageError, "") if status is not None else _judge_unanswered(name, detail, endpoint)


def _judge_unanswered(name: str, detail: str, endpoint: str) -> tuple[type[StorageError], str]:
    if found := _BAD_CERTIFICATE.search(detail):
        return (
            StorageAccessError,
            f"the certificate of {endpoint} is not trusted here ({found[1]}); set SSL_CERT_FILE to a file with that of its "
            "authority, or correct the endpoint or this machine's clock",
        )
    if _NO_TLS in detail:
        return (
            StorageAccessError,
            f"{endpoint} answers without TLS; write its address as http://… (or add scheme=http)",
        )
    if any(text in detail for text in _NO_CONNECTION):
        return StorageUnavailableError, f"{endpoint} cannot be reached; check the endpoint, the network and the proxy"
    if any(text in detail for text in _TIMED_OUT):
        return (
            StorageUnavailableError,
            f"{endpoint} did not answer in time; check the network, or raise request_timeout",
        )
    if name == "GenericError":
        # What is left of the library's general errors are broken connections, and answers that were cut short.
        return StorageUnavailableError, f"the exchange with {endpoint} failed; try again"
    return StorageError, ""


def _reason(detail: str, status: int | None, code: str) -> str:
    # Azure's go over several lines, with the number of the request and the time.
    message = " ".join(found[1].split()) if (found := _MESSAGE.search(detail)) else ""
    said = f"{code}: {message}" if code and message else code or message
    if said:
        return f"status {status}: {said}"[:_LONGEST_REASON] if status else said[:_LONGEST_REASON]
    # What follows is the same again, in the library's own terms.
    detail = detail.partition("Debug source:")[0]
    plain = " ".join(detail.replace("\\n", " ").replace('\\"', '"').split())
    return plain if len(plain) <= _LONGEST_REASON else f"{plain[:_LONGEST_REASON]}…"


def _hidden(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    # What signs a URL is as good as the key until it expires.
    return re.sub(
        r"(?i)\b(sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token)=[^&\s\"]+", r"\1=***", text
    )
