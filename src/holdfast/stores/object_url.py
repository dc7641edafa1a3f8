"""URLs of object stores as people write them: `s3://bucket/prefix?region=eu-west-1`, and the forms of other programs.

Options come from the URL and from the environment, as the cloud's own tools read it (`AWS_…`, `GOOGLE_…`, `AZURE_…`, `~/.aws`); the URL
wins. A secret may be in a URL and is used, but it is never part of what is shown.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from holdfast.checks import nearest
from holdfast.errors import ConfigurationError
from holdfast.secrecy import may_carry_secrets
from holdfast.stores.aws_files import profile_of
from holdfast.stores.object_options import pairs_of
from holdfast.urls import SCHEMES, shown_url

# What our own clients obey, for every service; seconds, or numbers.
CLIENT_OPTIONS = frozenset({"connect_timeout", "request_timeout", "retry_timeout", "max_retries", "allow_http"})

# Options that other programs have in such URLs, by the name that they have here. pyarrow's come first.
_ALIASES = {
    "endpoint_override": "endpoint", "endpoint_url": "endpoint", "anonymous": "skip_signature", "anon": "skip_signature",
    "access_key": "access_key_id", "secret_key": "secret_access_key", "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key", "aws_session_token": "session_token", "token": "session_token",
    "force_virtual_addressing": "virtual_hosted_style_request", "retry_limit_seconds": "retry_timeout",
}  # fmt: skip
# How an error calls an option: as the guide does.
_SHOWN = {
    "endpoint": "endpoint_override", "skip_signature": "anonymous", "access_key_id": "access_key", "secret_access_key": "secret_key",
}  # fmt: skip
# Of pyarrow's options those that say nothing about where and how bytes are stored here.
_WITHOUT_MEANING = frozenset(
    {
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "background_writes",
        "allow_delayed_open",
        "tls_ca_file_path",
        "project_id",
    }
)
_OPTIONS = {
    "s3": frozenset(
        {
            "access_key_id", "secret_access_key", "session_token", "region", "endpoint", "skip_signature", "profile",
            "virtual_hosted_style_request", "unsigned_payload", "checksum_algorithm", "server_side_encryption",
            "sse_kms_key_id", "sse_bucket_key_enabled", "sse_customer_key_base64", "request_payer", "s3_express",
            "metadata_endpoint", "disable_tagging",
        }
    ),
    "gs": frozenset(
        {
            "service_account", "service_account_key", "application_credentials", "bearer_token", "endpoint", "skip_signature",
        }
    ),
    "az": frozenset(
        {
            "account_name", "account_key", "sas_key", "client_id", "client_secret", "tenant_id", "authority_id",
            "endpoint", "use_emulator", "skip_signature", "use_azure_cli", "bearer_token",
        }
    ),
    "http": frozenset(),
}  # fmt: skip
_SECRETS = frozenset(
    {
        "access_key_id", "secret_access_key", "session_token", "sse_customer_key_base64", "service_account_key",
        "account_key", "sas_key", "client_secret", "bearer_token",
    }
)  # fmt: skip
_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET", "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BEARER_TOKEN",
)  # fmt: skip
# The first that is set counts.
_VARIABLES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "s3": {
        "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "profile": ("AWS_PROFILE",),
    },
    "gs": {"endpoint": ("GOOGLE_BASE_URL",)},
    "az": {"endpoint": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")},
    "http": {},
}
_ENDPOINT = re.compile(r"^https?://[^\s/?#!]+(/\S*)?$", re.IGNORECASE)
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
_SWITCHES = frozenset({"allow_http", "skip_signature", "virtual_hosted_style_request"})
_NUMBER = re.compile(r"\d+(\.\d+)?")
_SHORTEST_SECRET = 4
_NO_OPTION = ". A '?' begins the options of a URL: no directory's name can have one there"


@dataclass(frozen=True, repr=False)
class Place:
    """A bucket, and how to reach it.

    Attributes:
        service: `s3`, `gs`, `az` or `http`.
        bucket: The bucket's (or container's) name; a web server's host.
        root: The URL of the whole bucket; it holds no secret.
        options: What the URL and the user said, under the client's names, sorted; it may hold secrets, which a pickle that is
            no private matter of the job's processes leaves out.
    """

    service: str
    bucket: str
    root: str
    options: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"Place({self.root!r})"

    def __reduce__(self) -> Any:
        options = tuple(each for each in self.options if may_carry_secrets() or each[0] not in _SECRETS)
        return Place, (self.service, self.bucket, self.root, options)

    def option(self, name: str) -> str | None:
        """What the URL said of an option."""
        return dict(self.options).get(name)

    def secrets(self) -> list[str]:
        """Every text that must not be shown: of the URL and of the environment."""
        found = [value for name, value in self.options if name in _SECRETS]
        found += [os.environ.get(name, "") for name in _SECRET_VARIABLES]
        # Of shorter ones ("test") every text is full; the longest first, for one may hold another.
        return sorted((each for each in found if len(each) > _SHORTEST_SECRET), key=len, reverse=True)


def parse_url(url: str, given: Mapping[str, Any] | None = None) -> tuple[Place, str]:
    """The place and the prefix in it that a URL names.

    Args:
        given: Options that are not in the URL; they win over those that are. See `object_options`.

    Raises:
        ConfigurationError: It names no bucket, or has an option that is not known; the text shows no secret.
    """
    parts = urllib.parse.urlsplit(url, allow_fragments=False)
    scheme = parts.scheme.lower()
    service = SCHEMES[scheme]
    userinfo, _, host = parts.netloc.rpartition("@")
    options: dict[str, str] = {}
    if scheme in ("abfs", "abfss") and userinfo:
        # abfss://container@account.dfs.core.windows.net/prefix
        container, _, key = userinfo.partition(":")
        # Before an account, or a container alone, pyarrow reads what is not the container.
        if key and not (container and ".dfs." in host):
            raise ConfigurationError(
                f"a {scheme}:// URL takes no password there; write {scheme}://container@account.dfs.core.windows.net/prefix, and give the "
                'key by storage_options={"account_key": …} or AZURE_STORAGE_ACCOUNT_KEY'
            )
        bucket, root = urllib.parse.unquote(container), f"{scheme}://{container}@{host}"
        options["account_name"] = host.partition(".")[0]
        if key:
            options["account_key"] = urllib.parse.unquote(key)
    else:
        bucket, root = host, f"{scheme}://{host}"
        if userinfo:
            name, _, secret = userinfo.partition(":")
            names = {"s3": ("access_key_id", "secret_access_key"), "az": ("account_name", "account_key")}.get(service)
            if names is None:
                raise ConfigurationError(
                    f"{shown_url(url)!r}: a {scheme}:// URL takes no user and password; see its options"
                )
            options.update(zip(names, (urllib.parse.unquote(name), urllib.parse.unquote(secret)), strict=True))
    if service == "http":
        options["allow_http"] = "true" if scheme == "http" else "false"
    if not bucket:
        raise ConfigurationError(f"{shown_url(url)!r} names no bucket; write {scheme}://bucket/prefix")
    # Together: an endpoint may be in one of them and its scheme in the other.
    # A + means itself, as before the @: keys have it, and no option has a space.
    written = urllib.parse.parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True)
    pairs = [(*pair, repr(shown_url(url))) for pair in written]
    pairs += [(*pair, "storage_options") for pair in pairs_of(service, given or {})]
    options.update(_read_options(service, pairs))
    path = urllib.parse.unquote(parts.path) if service == "http" else parts.path
    prefix = "/".join(part for part in path.split("/") if part)
    return Place(service, bucket, root, tuple(sorted(options.items()))), prefix


def _read_options(service: str, pairs: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """Options under the client's names.

    Args:
        pairs: Names and values, each with where it was written.
    """
    options: dict[str, str] = {}
    for name, value, where in pairs:
        plain = _ALIASES.get(name.lower(), name.lower())
        if plain in _WITHOUT_MEANING:
            continue
        known = _OPTIONS[service] | CLIENT_OPTIONS | {"scheme"}
        if plain not in known:
            raise ConfigurationError(_unknown(name if value else None, plain, known, where))
        _check(plain, _SHOWN.get(plain, plain), value, where)
        options[plain] = value
    scheme = options.pop("scheme", None)
    endpoint = options.get("endpoint")
    if endpoint is not None and "://" not in endpoint:
        options["endpoint"] = f"{scheme or 'https'}://{endpoint}"
    if "endpoint" in options and not _ENDPOINT.match(options["endpoint"]):
        raise ConfigurationError(
            f"the endpoint {shown_url(options['endpoint'])!r} is no URL; write it as http://host:port or https://host"
        )
    # Whoever writes http:// means it.
    if options.get("endpoint", "").startswith("http://"):
        options.setdefault("allow_http", "true")
    return options


def _unknown(name: str | None, plain: str, known: Set[str], where: str) -> str:
    """What is wrong with an option that there is not.

    Args:
        name: As it was written; None where it has no value, for it may be the rest of one, and that one secret.
    """
    shown = sorted(_SHOWN.get(each, each) for each in known)
    if name is None:
        text = f"{where} has an option without a value that is not known; there are: {', '.join(shown)}; write & in a value as %26"
        return text + (_NO_OPTION if "/" in plain else "")
    found = nearest(plain, [*shown, *sorted(known), *(alias for alias, each in _ALIASES.items() if each in known)])
    found = _ALIASES.get(found, found) if found is not None else None
    meant = f"; did you mean {_SHOWN.get(found, found)!r}?" if found is not None else ""
    text = f"{where} has the option {name!r}, which is not known; there are: {', '.join(shown)}{meant}"
    return text + (_NO_OPTION if "/" in plain else "")


def _check(name: str, shown: str, value: str, where: str) -> None:
    if name in _SWITCHES and value.lower() not in _TRUE | _FALSE:
        raise ConfigurationError(f"{where}: {shown} must be true or false, not {value!r}")
    if name in CLIENT_OPTIONS - _SWITCHES and not _NUMBER.fullmatch(value):
        raise ConfigurationError(f"{where}: {shown} must be a number that is not negative, not {value!r}")
    if name == "scheme" and value not in ("http", "https"):
        raise ConfigurationError(f"{where}: scheme must be http or https, not {value!r}")


def is_on(value: str | None) -> bool:
    """Whether a switch is on."""
    return value is not None and value.lower() in _TRUE


def from_environment(service: str, environment: Mapping[str, str], profile: str | None = None) -> dict[str, str]:
    """What the client itself does not read from the environment and Amazon's files, though the cloud's own tools do.

    Args:
        profile: The one that the URL or the user names.
    """
    found = {
        name: next((environment[each] for each in variables if environment.get(each)), "")
        for name, variables in _VARIABLES[service].items()
    }
    found = {name: value for name, value in found.items() if value}
    if service == "s3":
        own = profile_of(environment, profile or found.get("profile"))
        in_files = {name: own.get(theirs) for name, theirs in (("endpoint", "endpoint_url"), ("region", "region"))}
        found = {**{name: value for name, value in in_files.items() if value}, **found}
    return found
