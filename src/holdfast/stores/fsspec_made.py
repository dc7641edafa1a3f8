"""Makes the file system of fsspec that a URL names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.stores.fsspec_errors import options_error
from holdfast.urls import SCHEMES, shown_url

# What every file system of fsspec takes.
_COMMON = frozenset(
    {"skip_instance_cache", "use_listings_cache", "listings_expiry_time", "max_paths", "asynchronous", "loop"}
)
# Their further arguments go nowhere: fsspec would swallow a mistyped one.
_SWALLOWING = ("fsspec.implementations.local", "fsspec.implementations.memory")


def check_url(url: str, options: Mapping[str, Any]) -> None:
    """Refuses a URL that nothing can be made of, before anything is reached for.

    Raises:
        ConfigurationError: There is no such scheme, an option is not known, or the package for it is not installed.
    """
    kind = _class_of(url)
    parameters = inspect.signature(kind.__init__).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if takes_all and not kind.__module__.startswith(_SWALLOWING):
        return
    named = {name for name, each in parameters.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    known = (named | _COMMON) - {"self"}
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"storage_options has {name!r}, which {shown_url(url)!r} does not know; there are: {', '.join(sorted(known))}"
            )


def make_filesystem(url: str, options: Mapping[str, Any], secrets: Sequence[str]) -> tuple[Any, str]:
    """The file system, and the path in it, that a URL names. May connect.

    Raises:
        ConfigurationError: It cannot be made.
        Exception: Whatever it raises where it cannot connect.
    """
    kind = _class_of(url)
    try:
        # What is given as an option wins: it was written for this call.
        arguments = {**kind._get_kwargs_from_urls(url), **options}
        if not kind.async_impl:
            # fsspec would give one that another connection uses already, with turns of its own, or whose connection has broken.
            arguments["skip_instance_cache"] = True
        filesystem = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise options_error(shown_url(url), error, secrets) from None
    except ImportError as error:
        raise _missing(url, error) from None
    return filesystem, str(filesystem._strip_protocol(url))


def _class_of(url: str) -> Any:
    scheme = url.partition("://")[0].lower()
    try:
        registry = importlib.import_module("fsspec.registry")
    except ImportError as error:
        raise ConfigurationError(
            f"{shown_url(url)!r} is reached through fsspec, which is not installed; install it with: "
            'pip install "holdfast[fsspec]"'
        ) from error
    if scheme not in registry.known_implementations and scheme not in registry.registry:
        known = sorted({*registry.known_implementations, *registry.registry, *SCHEMES})
        raise ConfigurationError(
            f"{shown_url(url)!r} has the scheme {scheme!r}, which neither Holdfast nor fsspec knows; they know local paths and: "
            f"{', '.join(known)}"
        )
    try:
        return registry.get_filesystem_class(scheme)
    except HoldfastError:
        raise
    except Exception as error:  # noqa: BLE001 - the package behind it may do anything while it is imported
        raise _missing(url, error) from None


def _missing(url: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{shown_url(url)!r} needs a package that cannot be imported: {error}; install it in this environment "
        '(for hdfs: pip install "holdfast[arrow]")'
    )
