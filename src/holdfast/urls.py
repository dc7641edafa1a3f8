"""URLs as they are written, and as they may be shown."""

from __future__ import annotations


def has_options(place: object) -> bool:
    """Whether a storage path is of a kind in which options follow a `?`: a URL, but not one of a local path."""
    scheme, separator, _ = place.partition("://") if isinstance(place, str) else ("", "", "")
    return bool(separator) and "/" not in scheme and scheme.lower() not in ("file", "local")


def shown_url(url: str) -> str:
    """A URL without what may be a secret: the user and password, and the options. A path stays as it is.

    The container in `abfss://container@account…` stays, too: it is no secret.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or "/" in scheme:
        return url
    authority, slash, path = rest.partition("?")[0].partition("/")
    userinfo, at, host = authority.rpartition("@")
    if at and not (scheme.lower() in ("abfs", "abfss") and ":" not in userinfo):
        authority = host
    return f"{scheme}://{authority}{slash}{path}"
