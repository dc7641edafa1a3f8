"""Credentials that a user gave for one place, in the form in which the client takes nothing else beside them.

Left to itself the client mixes: it adds a session token of the environment to keys of a URL, and prefers a key of the
environment to a URL's signature, which may be for less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from holdfast.stores.object_url import Place

# By service: options of which the first that was given counts, and what the client calls it.
_ALONE = {
    "gs": (("bearer_token", "token"),),
    "az": (("account_key", "access_key"), ("sas_key", "sas_token"), ("bearer_token", "token")),
}


def given_credentials(place: Place) -> Callable[[], Mapping[str, Any]] | None:
    """What gives the client the credentials of the URL or the options; None where there are none, or not such."""
    found = _found(place)
    if found is None:
        return None
    # They were given once and are not renewed.
    credentials = {**found, "expires_at": None}
    return lambda: credentials


def _found(place: Place) -> dict[str, str | None] | None:
    options = dict(place.options)
    if place.service == "s3":
        key, secret = options.get("access_key_id"), options.get("secret_access_key")
        if key is None or secret is None:
            return None
        return {"access_key_id": key, "secret_access_key": secret, "token": options.get("session_token")}
    for name, plain in _ALONE.get(place.service, ()):
        if name in options:
            return {plain: options[name]}
    return None
