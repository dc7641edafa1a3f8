"""Places that a run's bytes can lie in, behind one contract (`base.Store`)."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import Any

from holdfast.errors import ConfigurationError
from holdfast.stores.base import Store as Store
from holdfast.stores.local import LocalStore
from holdfast.stores.object_url import SCHEMES
from holdfast.urls import shown_url

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_CUT = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/[^/]")


def open_store(path: str | os.PathLike[str], filesystem: Any = None) -> Store:
    """The store at a path.

    Args:
        path: A directory (`~` is expanded), a `file://` URI, or the URL of a bucket or a prefix in it: `s3://`, `gs://`,
            `az://`, `abfss://`, with options as `?region=…&endpoint_override=…`. With `filesystem`, a path of it.
        filesystem: A `LocalFileSystem` of fsspec or pyarrow, or None.

    Raises:
        ConfigurationError: The path is of a kind that this version cannot store on.
    """
    if isinstance(path, bytes) or not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"A storage path must be a text or a Path, not {type(path).__name__}: {path!r}")
    text = os.fspath(path)
    if not text:
        raise ConfigurationError("The storage path is empty; give a directory")
    if "\0" in text:
        raise ConfigurationError(f"The storage path {text!r} holds a NUL character")
    if (cut := _CUT.match(text)) and cut[1].lower() in SCHEMES:
        raise ConfigurationError(f"{text!r} was a URL once: pathlib makes one slash of two; give the URL as a text")
    found = _SCHEME.match(text)
    if filesystem is None and found is not None and found[1].lower() in SCHEMES:
        # Loaded by who uses one; the package behind it is loaded at the first request.
        from holdfast.stores.object_store import ObjectStore

        return ObjectStore(text)
    if filesystem is not None and not _is_local(filesystem):
        kind = f"{type(filesystem).__module__}.{type(filesystem).__qualname__}"
        raise ConfigurationError(
            f"This version of Holdfast takes no file system object of the kind {kind}; give a path or URL (s3://…) instead"
        )
    return LocalStore(_without_scheme(text))


def _is_local(filesystem: Any) -> bool:
    """Whether it is fsspec's or pyarrow's local file system, told by name: neither is imported here."""
    return any(
        cls.__name__ == "LocalFileSystem" and cls.__module__.split(".")[0] in ("fsspec", "pyarrow")
        for cls in type(filesystem).__mro__
    )


def _without_scheme(text: str) -> str:
    found = _SCHEME.match(text)
    if found is None:
        return text
    scheme = found[1].lower()
    if scheme in ("file", "local"):
        uri = urllib.parse.urlsplit(text)
        if uri.netloc not in ("", "localhost"):
            raise ConfigurationError(f"{text!r} names the host {uri.netloc!r}; write file:///path for a local path")
        # Split by hand: a "?" or "#" is part of a file's name, not of a query.
        rest = text[found.end() + len(uri.netloc) :]
        return urllib.parse.unquote(rest, errors="surrogateescape")
    raise ConfigurationError(
        f"{shown_url(text)!r} has the scheme {scheme!r}, which this version of Holdfast does not know; it knows local paths and "
        f"{', '.join(f'{each}://' for each in sorted(SCHEMES))}; mount the storage and give the path"
    )
