"""URLs as they are written, and as they may be shown."""

from __future__ import annotations

import re

from holdfast.errors import ConfigurationError

SCHEMES = {
    "s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "adl": "az",
    "abfs": "az", "abfss": "az", "http": "http", "https": "http",
}  # fmt: skip
"""The service of each scheme of an object store's URL."""

_AZURE_FILES = ("abfs", "abfss")
# What follows the `//` of these is a path.
_OF_THIS_MACHINE = ("file", "local", "memory")
_AUTHORITY_ENDS = re.compile(r"[/?#]")
_HOST = re.compile(r"([^:]*|\[[^\]]*\])(:\d+)?")


def has_options(place: object) -> bool:
    """Whether a storage path is of a kind in which options follow a `?`: a URL, but not one of a local path."""
    scheme, separator, _ = place.partition("://") if isinstance(place, str) else ("", "", "")
    return bool(separator) and "/" not in scheme and scheme.lower() not in ("file", "local")


def check_url(place: object) -> None:
    """Refuses a URL that names no bucket or host where one has to be, which it does not quote: most likely that is a password.

    A `/`, `?` or `#` in a password, as Amazon's secret keys and Azure's often have, ends the part of a URL in which passwords are looked
    for: what is behind it would be a part of the path, and shown and stored as such.

    Raises:
        ConfigurationError: It is such a URL. What is no URL, and what has another fault, passes.
    """
    if not isinstance(place, str) or not has_options(place):
        return
    written, _, rest = place.partition("://")
    scheme = written.lower()
    authority = _AUTHORITY_ENDS.split(rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    # A bucket has no port.
    is_of_bucket = SCHEMES.get(scheme, "http") != "http"
    is_wrong = ":" in host if is_of_bucket else _HOST.fullmatch(host) is None
    if is_wrong and scheme not in _OF_THIS_MACHINE:
        # fsspec takes a password as it is written.
        coded = "write its / as %2F, ? as %3F, # as %23 and @ as %40, or " if is_of_bucket else ""
        raise ConfigurationError(
            f"a URL of {written}:// has a ':' in what should be the name of a {'bucket' if is_of_bucket else 'host'}; where that is a "
            f"password, {coded}give it by storage_options"
        )


def shown_url(url: str) -> str:
    """A URL without what may be a secret: the user and password, and the options. A path stays as it is.

    The container in `abfss://container@account…` stays, too: it is no secret.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or "/" in scheme:
        return url
    authority, slash, path = rest.partition("?")[0].partition("/")
    userinfo, at, host = authority.rpartition("@")
    name = userinfo.partition(":")[0]
    if at:
        authority = f"{name}@{host}" if name and scheme.lower() in _AZURE_FILES else host
    return f"{scheme}://{authority}{slash}{path}"
