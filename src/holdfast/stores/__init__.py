"""Places that a run's bytes can lie in, behind one contract (`base.Store`)."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from holdfast.errors import ConfigurationError
from holdfast.stores.base import Store as Store
from holdfast.stores.local import LocalStore
from holdfast.stores.wrapped import check, native_place
from holdfast.urls import SCHEMES, check_url, shown_url

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_CUT = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/[^/]")
_CHAINED = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+::")
_LOCAL = ("file", "local")
# Beside those of buckets: other URLs that are taken for paths where a slash is missing.
_SEEN_CUT = ("hdfs", "webhdfs", "sftp", "ssh", "smb", "ftp", "webdav", "memory")


def check_place(path: str | os.PathLike[str], filesystem: Any = None, options: Mapping[str, Any] | None = None) -> None:
    """Raises what `open_store` would, as far as that is known without asking anybody.

    Raises:
        ConfigurationError: As `open_store`.
    """
    found = _SCHEME.match(checked_path(path))
    if filesystem is None and (found is None or found[1].lower() in (*SCHEMES, *_LOCAL)):
        open_store(path, None, options)


def open_store(path: str | os.PathLike[str], filesystem: Any = None, options: Mapping[str, Any] | None = None) -> Store:
    """The store at a path.

    Args:
        path: A directory (`~` is expanded), a `file://` URI, the URL of a bucket or a prefix in it (`s3://`, `gs://`, `az://`,
            `abfss://`, with options as `?region=…&endpoint_override=…`; `https://` to read a checkpoint), or the URL of a directory in any file system that fsspec
            knows (`hdfs://`, `sftp://`, …). With `filesystem`, a path in it.
        filesystem: A file system object of fsspec or pyarrow.
        options: Options of the bucket's client, or of fsspec's file system, beside those in the URL.

    Raises:
        ConfigurationError: The path is of a kind that this version cannot store on, an option is not known, or a package is missing.
    """
    text = checked_path(path)
    if options is not None and not isinstance(options, Mapping):
        raise ConfigurationError(f"storage_options must be a dict of names to values, not {type(options).__name__}")
    if filesystem is not None:
        return _open_in(filesystem, text, options)
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found is not None else None
    if scheme in SCHEMES:
        # Loaded by who uses one; the package behind it is loaded at the first request.
        from holdfast.stores.object_store import ObjectStore

        return ObjectStore(text, options)
    if scheme is None or scheme in _LOCAL:
        if options:
            raise ConfigurationError(
                f"storage_options are for URLs (s3://…), and {shown_url(text)!r} is a path; leave them out"
            )
        return LocalStore(_without_scheme(text))
    from holdfast.stores.fsspec_store import FsspecStore

    return FsspecStore(text, options=options)


def plain_filesystem(filesystem: Any) -> Any:
    """The file system object that the paths of `open_store(path, filesystem)` belong to.

    It is the given one, but for a wrapper that shows a directory of this machine as its root: there paths are the machine's own.
    """
    found = native_place(filesystem, "/") if filesystem is not None else None
    return found[1] if found is not None else filesystem


def _open_in(filesystem: Any, text: str, options: Mapping[str, Any] | None) -> Store:
    check(filesystem)
    if options:
        raise ConfigurationError(
            "storage_options are for URLs; a storage_filesystem has its own already, so leave them out"
        )
    found = native_place(filesystem, _without_scheme(text) if text.startswith("file:") else text)
    if found is not None:
        return LocalStore(found[0])
    from holdfast.stores.fsspec_store import FsspecStore

    return FsspecStore(text, filesystem)


def checked_path(path: str | os.PathLike[str]) -> str:
    """A path or URL as a text.

    Raises:
        ConfigurationError: It can be neither.
    """
    if isinstance(path, bytes) or not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"A storage path must be a text or a Path, not {type(path).__name__}: {path!r}")
    text = os.fspath(path)
    if not text:
        raise ConfigurationError("The storage path is empty; give a directory")
    if "\0" in text:
        raise ConfigurationError(f"The storage path {text!r} holds a NUL character")
    if (cut := _CUT.match(text)) and cut[1].lower() in (*SCHEMES, *_SEEN_CUT):
        # It may have had a password.
        raise ConfigurationError(
            f"a path that begins with '{cut[1]}:/' was a URL once: pathlib makes one slash of two; give the URL as a text"
        )
    check_url(text)
    if _CHAINED.match(text) and "://" in text:
        raise ConfigurationError(
            f"{shown_url(text)!r} chains several file systems; make the object with fsspec and pass it as storage_filesystem"
        )
    return text


def _without_scheme(text: str) -> str:
    found = _SCHEME.match(text)
    if found is None:
        return text
    uri = urllib.parse.urlsplit(text)
    if uri.netloc not in ("", "localhost"):
        shown = shown_url(text)
        raise ConfigurationError(
            f"{shown!r} names the host {uri.netloc.rpartition('@')[2]!r}; write file:///path for a local path"
        )
    # Split by hand: a "?" or "#" is part of a file's name, not of a query.
    rest = text[found.end() + len(uri.netloc) :]
    return urllib.parse.unquote(rest, errors="surrogateescape")
