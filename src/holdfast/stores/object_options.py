"""Options of object stores as a dict: obstore's names, and those that users of s3fs, gcsfs and adlfs write.

They become pairs under the names that a URL has (`object_url`), where they are checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.errors import ConfigurationError

_PREFIXES = {"s3": "aws_", "gs": "google_", "az": "azure_"}
_ALIASES = {
    "s3": {"key": "access_key_id", "secret": "secret_access_key", "username": "access_key_id", "password": "secret_access_key"},
    "gs": {},
    "az": {
        "sas_token": "sas_key", "storage_account_name": "account_name", "storage_account_key": "account_key",
        "account_host": "endpoint",
    },
}  # fmt: skip
# Options of s3fs that hold others, by what those are here.
_NESTED = {
    "client_kwargs": {
        "endpoint_url": "endpoint", "region_name": "region", "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key", "aws_session_token": "session_token", "use_ssl": "use_ssl",
    },
    "config_kwargs": {
        "region_name": "region", "connect_timeout": "connect_timeout", "read_timeout": "request_timeout", "s3": "s3",
    },
    "s3_additional_kwargs": {
        "ServerSideEncryption": "server_side_encryption", "SSEKMSKeyId": "sse_kms_key_id", "RequestPayer": "request_payer",
    },
}  # fmt: skip
# What says how s3fs, gcsfs and adlfs work, and nothing about where and how bytes are stored here.
_WITHOUT_MEANING = frozenset(
    {
        "use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache", "asynchronous", "loop",
        "default_block_size", "default_cache_type", "default_fill_cache", "cache_regions", "max_concurrency", "project",
    }
)  # fmt: skip


def pairs_of(service: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each option under the name that it has in a URL, its value as text.

    Args:
        service: `s3`, `gs` or `az`.

    Raises:
        ConfigurationError: A value is of no kind that can be an option's, or one inside of another is not known.
    """
    for name, value in options.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"storage_options must have names that are texts, not {name!r}")
        if value is None or name in _WITHOUT_MEANING:
            continue
        plain = name.lower().removeprefix(_PREFIXES[service])
        if service == "s3" and name in _NESTED:
            yield from _nested(name, value)
        elif service == "gs" and name == "token":
            yield from _google_token(value)
        elif name == "use_ssl":
            yield "scheme", "https" if value else "http"
        else:
            yield _ALIASES[service].get(plain, plain), _text(name, value)


def _nested(outer: str, values: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"storage_options[{outer!r}] must be a dict")
    known = _NESTED[outer]
    for name, value in values.items():
        if name not in known:
            raise ConfigurationError(
                f"storage_options[{outer!r}] has the option {name!r}, which is not known; there are: {', '.join(sorted(known))}"
            )
        if name == "s3" and isinstance(value, Mapping):
            style = value.get("addressing_style", "auto")
            if style in ("path", "virtual"):
                yield "virtual_hosted_style_request", "true" if style == "virtual" else "false"
        elif name == "use_ssl":
            yield "scheme", "https" if value else "http"
        elif value is not None:
            yield known[name], _text(f"{outer}.{name}", value)


def _google_token(value: Any) -> Iterator[tuple[str, str]]:
    """Gcsfs takes a file of credentials, what is in one, or a word."""
    if value == "anon":
        yield "skip_signature", "true"
    elif isinstance(value, Mapping):
        yield "service_account_key", json.dumps(dict(value))
    elif value not in ("google_default", "cloud"):
        yield "service_account", _text("token", value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    # The value is not shown: it may be a secret.
    raise ConfigurationError(
        f"storage_options[{name!r}] must be a text, a number or True or False, not {type(value).__name__}"
    )
