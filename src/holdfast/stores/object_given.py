"""Credentials that a user gave for one place, in the form in which the client takes nothing else beside them.

Left to itself the client mixes: it adds a session token of the environment to keys of a URL, and prefers a key of the
environment to a URL's signature, which may be for less.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.errors import StorageAccessError
from holdfast.stores.aws_files import has_keys, profile_of
from holdfast.stores.object_url import Place

# By service: options of which the first that was given counts, and what the client calls it.
_ALONE = {
    "gs": (("bearer_token", "token"),),
    "az": (("account_key", "access_key"), ("sas_key", "sas_token"), ("bearer_token", "token")),
}


# What gives a process the role that it runs in; the client reads these.
_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip


def given_credentials(place: Place) -> Callable[[], Mapping[str, Any]] | None:
    """What gives the client the credentials of the URL or the options; None where there are none, or not such."""
    found = _found(place)
    if found is None:
        return None
    # They were given once and are not renewed.
    credentials = {**found, "expires_at": None}
    return lambda: credentials


def profile_credentials(place: Place, profile: str | None) -> Any:
    """Gives the credentials of an AWS profile, which obstore does not read itself.

    Args:
        profile: The one that is asked for; where None, the default one counts, if it has any and the environment has none.

    Returns:
        None where nothing is asked of a profile.

    Raises:
        StorageAccessError: There is no such profile, or boto3, which reads them, is missing.
    """
    # As in Amazon's tools: keys of the environment win over its profile, and not over one that was given.
    if place.option("profile") is None and os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    is_asked_for = profile is not None
    if profile is None:
        profile = "default"
        if any(os.environ.get(name) for name in _ROLES) or not has_keys(profile_of(os.environ, profile)):
            return None
    try:
        boto3 = importlib.import_module("boto3")
        found = importlib.import_module("obstore.auth.boto3")
    except ImportError:
        if not is_asked_for:  # the machine may have a role
            return None
        raise StorageAccessError(
            f"Cannot use {place.root!r} with the AWS profile {profile!r}: boto3, which reads profiles, is not installed; "
            "install it with: pip install boto3"
        ) from None
    try:
        return found.Boto3CredentialProvider(boto3.Session(profile_name=profile))
    except Exception as error:  # noqa: BLE001 - boto3's errors are no business of this module
        raise StorageAccessError(
            f"Cannot use {place.root!r} with the AWS profile {profile!r}: {type(error).__name__}; correct AWS_PROFILE or "
            "~/.aws/config"
        ) from None


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
