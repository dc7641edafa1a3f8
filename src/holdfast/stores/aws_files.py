"""What `aws configure` leaves: `~/.aws/config` and `~/.aws/credentials`, as far as a client has to be told what they say.

Only boto3 can turn all that a profile may have (roles, single sign-on, programs) into keys. Here it is known whether there is anything to turn,
so that nobody loads it, or asks the network for a role, in vain.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import shlex
from collections.abc import Mapping

_GIVES_KEYS = frozenset(
    {"aws_access_key_id", "role_arn", "credential_process", "sso_session", "sso_start_url", "login_session"}
)


def profile_of(environment: Mapping[str, str], name: str | None) -> dict[str, str]:
    """The settings of a profile, `default` where None, under Amazon's names; empty where there is none."""
    name = name or "default"
    config = _sections(environment.get("AWS_CONFIG_FILE") or "~/.aws/config")
    shared = _sections(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    title = name if name == "default" else f"profile {name}"
    found = {**config.get(title, {}), **shared.get(name, {})}
    services = config.get(f"services {found.get('services')}", {})
    # Its lines are settings again.
    of_s3 = dict(line.replace(" ", "").split("=", 1) for line in services.get("s3", "").splitlines() if "=" in line)
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        found.pop("endpoint_url", None)
    elif "endpoint_url" in of_s3:
        found["endpoint_url"] = of_s3["endpoint_url"]
    return found


def has_keys(profile: Mapping[str, str]) -> bool:
    """Whether credentials can be had of a profile's settings."""
    return not _GIVES_KEYS.isdisjoint(profile)


def _sections(path: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(os.path.expanduser(path), encoding="utf-8")
    except (configparser.Error, ValueError, OSError):
        # boto3 says it, where anybody asks for what is in there.
        return {}
    found = {}
    for title in parser.sections():
        with contextlib.suppress(ValueError):  # a quotation mark without its fellow
            found[" ".join(shlex.split(title))] = dict(parser.items(title))
    return found
