"""File system objects that users have already, of fsspec or pyarrow, and what Holdfast makes of them.

What is a directory of this machine in the end becomes the native local store, however it is wrapped. All else is used through fsspec.
Objects are told by the names of their classes: neither package is imported for it.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from typing import Any

from holdfast.errors import ConfigurationError
from holdfast.secrecy import LeftOut, is_secret_name

# Of pyarrow's, those whose objects hold no credentials.
_OPEN_ARROW = ("LocalFileSystem", "HadoopFileSystem", "_MockFileSystem")


def native_place(filesystem: Any, path: str) -> tuple[str, Any] | None:
    """The path on this machine that a path in a file system is, with a file system object that this path belongs to.

    Returns:
        None where it is no directory of this machine.
    """
    kind = _kind(filesystem)
    if kind == "local":
        return path, filesystem
    inner = _inner(filesystem)
    if inner is None:
        return None
    top, below = inner
    found = native_place(below, top)
    if found is None:
        return None
    base = found[0].rstrip("/")
    # What Holdfast shows of such a place is the machine's own path, and that may come back.
    is_whole = base and (path.rstrip("/") == base or path.startswith(f"{base}/"))
    return path if is_whole else f"{base}/{path.strip('/')}".rstrip("/") or "/", found[1]


def in_fsspec(filesystem: Any) -> Any:
    """The file system as fsspec has it.

    Raises:
        ConfigurationError: It is none, or what wraps it is not installed.
    """
    if _is_arrow(filesystem):
        try:
            wrapper = importlib.import_module("fsspec.implementations.arrow").ArrowFSWrapper
        except ImportError as error:
            raise ConfigurationError(
                'a file system of pyarrow is used through fsspec, which is not installed; install it with: pip install "holdfast[arrow]"'
            ) from error
        # Without the cache, which finds an instance by what the file system says of itself: of secrets it says nothing.
        return wrapper(fs=filesystem, skip_instance_cache=True)
    if not _is_fsspec(filesystem):
        raise ConfigurationError(
            f"{name_of(filesystem)} is no file system; give one of fsspec or pyarrow.fs, or give a path or URL (s3://…) alone"
        )
    return filesystem


def check(filesystem: Any) -> None:
    """Refuses what is no file system object.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(filesystem, LeftOut):
        raise ConfigurationError(
            "this configuration comes from a pickle, which holds no credentials; give the file system again, as in "
            "dataclasses.replace(run_config, storage_filesystem=…)"
        )
    if not _is_arrow(filesystem):
        in_fsspec(filesystem)
    if getattr(filesystem, "asynchronous", False):
        raise ConfigurationError(
            f"{name_of(filesystem)} was made with asynchronous=True, for use inside of coroutines; make it without"
        )


def holds_secrets(filesystem: Any) -> bool:
    """Whether the object may hold credentials, so that its pickle must not lie in a file."""
    inner = _inner(filesystem)
    if inner is not None:
        return holds_secrets(inner[1])
    if _is_arrow(filesystem):
        return type(filesystem).__name__ not in _OPEN_ARROW
    values = [*getattr(filesystem, "storage_args", ()), *getattr(filesystem, "storage_options", {}).items()]
    return any(_is_suspect(value) for value in values)


def recipe_of(filesystem: Any) -> Callable[[], Any] | None:
    """What makes another object for the same place, with connections of its own.

    Returns:
        None where it would share something with the given one: a client, a session, another file system object.
    """
    if not _is_fsspec(filesystem):
        return None
    kind = type(filesystem)
    if "DirFileSystem" in _class_names(filesystem):
        inner, path = recipe_of(filesystem.fs), filesystem.path
        return None if inner is None else lambda: kind(path=path, fs=inner(), skip_instance_cache=True)
    args, options = filesystem.storage_args, filesystem.storage_options
    if any(_is_fsspec(value) or _is_arrow(value) for value in (*args, *options.values())):
        return None
    try:
        # A copy that is made so has no lock and no socket of the original.
        data = pickle.dumps((args, options))
    except Exception:  # noqa: BLE001 - what cannot be copied raises anything
        return None

    def make() -> Any:
        args, options = pickle.loads(data)
        return kind(*args, **{**options, "skip_instance_cache": True})

    return make


def identity_of(filesystem: Any) -> Any:
    """What is equal for two objects that are the same file system.

    fsspec itself compares by the process and thread that made an object, too.
    """
    if not _is_fsspec(filesystem):
        return filesystem
    options = sorted(filesystem.storage_options.items())
    return (
        type(filesystem),
        [identity_of(value) for value in filesystem.storage_args],
        [(name, identity_of(value)) for name, value in options],
    )


def name_of(value: Any) -> str:
    """The class of an object, as errors call it: what the object says of itself may hold secrets."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def without_credentials(filesystem: Any) -> Any:
    """The object if it holds none, else None."""
    return None if filesystem is None or holds_secrets(filesystem) else filesystem


def _is_suspect(value: Any) -> bool:
    if isinstance(value, tuple):
        return is_secret_name(str(value[0])) or _is_suspect(value[1])
    if isinstance(value, dict):
        return any(_is_suspect(item) for item in value.items())
    if _is_arrow(value) or _is_fsspec(value):
        return holds_secrets(value)
    return isinstance(value, str) and "@" in value


def _inner(filesystem: Any) -> tuple[str, Any] | None:
    """The directory that a wrapper shows as the root, and the file system that it is in; None where it is no wrapper."""
    names = _class_names(filesystem)
    if _is_arrow(filesystem) and "SubTreeFileSystem" in names:
        return filesystem.base_path, filesystem.base_fs
    if _is_fsspec(filesystem) and "DirFileSystem" in names:
        return filesystem.path, filesystem.fs
    if _is_fsspec(filesystem) and "ArrowFSWrapper" in names:
        return "/", filesystem.fs
    return None


def _kind(filesystem: Any) -> str:
    names = _class_names(filesystem)
    if "LocalFileSystem" not in names:
        return "other"
    # A class that derives from fsspec's and calls itself something else is something else.
    is_local = _is_arrow(filesystem) or (_is_fsspec(filesystem) and filesystem.protocol in ("file", ("file", "local")))
    return "local" if is_local else "other"


def _is_arrow(value: Any) -> bool:
    return any(cls.__module__ == "pyarrow._fs" and cls.__name__ == "FileSystem" for cls in type(value).__mro__)


def _is_fsspec(value: Any) -> bool:
    return any(cls.__module__ == "fsspec.spec" and cls.__name__ == "AbstractFileSystem" for cls in type(value).__mro__)


def _class_names(value: Any) -> set[str]:
    return {cls.__name__ for cls in type(value).__mro__}
