"""What may be a secret, where it may go, and how it is kept out of what people read.

A store is made from credentials, and it is pickled: when it crosses to a worker, and when a user pickles a `Checkpoint`, or the configuration
of a run, into a file. The first is a pipe between two processes of one job, and the credentials have to go along. The second is a file that others
may read: there they are left out.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from holdfast.urls import SCHEMES, has_options, shown_url

_Kept = TypeVar("_Kept", bound="PickledWithoutSecrets")
_SECRET = re.compile(
    r"(?i)pass|secret|token|credential|(^|_)(key|keys|sas|auth|pwd|cookies?)$|account_key|access_key|sas_key|service_account_key"
    r"|private_key|pkey|connection_string|headers|authorization"
)
_USERINFO = re.compile(r"(?<=://)[^/@\s'\"]+@")
_SHORTEST_SECRET = 4
HIDDEN = "***"

_private: contextvars.ContextVar[bool] = contextvars.ContextVar("holdfast_private_channel", default=False)


@contextlib.contextmanager
def private_channel() -> Iterator[None]:
    """What is pickled in the block goes to another process of the job, and nowhere else: secrets go along."""
    token = _private.set(True)
    try:
        yield
    finally:
        _private.reset(token)


def may_carry_secrets() -> bool:
    """Whether what is being pickled now stays between processes: ours, or those that `multiprocessing` starts."""
    # As multiprocessing's own keys do: it says whether what it pickles is for a process that it starts.
    starting = sys.modules.get("multiprocessing.context")
    return _private.get() or (starting is not None and starting.get_spawning_popen() is not None)


class PickledWithoutSecrets:
    """A base of what may hold secrets: a pickle that may lie in a file is without them, and a copy in this process has them."""

    def _without_secrets(self) -> dict[str, Any]:
        """The attributes as such a pickle may have them."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__) if may_carry_secrets() else self._without_secrets()

    # By itself the module `copy` would take what a pickle has.
    def __copy__(self: _Kept) -> _Kept:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self: _Kept, memo: dict[int, Any]) -> _Kept:
        copied = memo[id(self)] = object.__new__(type(self))
        with private_channel():
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


class LeftOut:
    """What a pickle has in the place of a file system that may hold credentials: nothing works with it, and it says why."""


def is_secret_name(name: str) -> bool:
    """Whether an option of that name may hold a secret; of names that nobody here knows, rather one too many."""
    return bool(_SECRET.search(name))


def without_secrets(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options less those that may be secrets, also inside of others."""
    return {
        name: without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if not is_secret_name(str(name))
    }


def secrets_of(options: Mapping[str, Any]) -> list[str]:
    """The texts in options that must not be shown; the longest first, for one may hold another."""
    return sorted(set(_secrets(options, is_secret=False)), key=len, reverse=True)


def password_in(url: str) -> str | None:
    """What stands between the colon and the `@` of a URL's authority."""
    userinfo, at, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    return userinfo.partition(":")[2] if at and ":" in userinfo else None


def without_password(url: str) -> str:
    """The URL with its user, and without the password."""
    password = password_in(url)
    return url if password is None else url.replace(f":{password}@", "@", 1)


def url_without_secrets(url: str) -> str:
    """The URL with its options, less those that may be secrets, and less the password. A path stays as it is."""
    if not has_options(url):
        return url
    place, _, query = url.partition("?")
    if SCHEMES.get(place.partition("://")[0].lower()) is None:
        place = without_password(place)
    else:
        place = shown_url(place)
    options = [
        each
        for each in query.split("&")
        if not is_secret_name(urllib.parse.unquote(each.partition("=")[0])) and "=" in each
    ]
    return f"{place}?{'&'.join(options)}" if options else place


def hidden(text: str, secrets: Sequence[str]) -> str:
    """The text without these secrets, and without what stands before an `@` in a URL."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _USERINFO.sub(f"{HIDDEN}@", text)


def _secrets(value: Any, *, is_secret: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _secrets(each, is_secret=is_secret or is_secret_name(str(name)))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _secrets(each, is_secret=is_secret)
    elif isinstance(getattr(value, "storage_options", None), Mapping):  # a file system of fsspec
        yield from _secrets(value.storage_options, is_secret=is_secret)
    elif is_secret and isinstance(value, str | bytes):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        # Of shorter ones every text is full.
        if len(text) > _SHORTEST_SECRET:
            yield text
