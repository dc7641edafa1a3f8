"""A file system of fsspec as this process calls it: with a limit of time, and errors that say what to do and show no secret.

fsspec's calls have no limit of their own, and a server that is gone may keep one forever. So each runs in a thread that nobody joins,
and who waits for it stops after 60 s (`HOLDFAST_STORAGE_TIMEOUT_S`). What reads, or may be repeated, is tried again a few times where
the failure is of a kind that passes; above that, `persistence.retry` decides.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

from holdfast.errors import ConfigurationError, HoldfastError, StorageUnavailableError
from holdfast.secrecy import may_carry_secrets, password_in, secrets_of, without_password, without_secrets
from holdfast.stores.fsspec_errors import cause_of, fsspec_error
from holdfast.stores.fsspec_made import make_filesystem
from holdfast.stores.fsspec_traits import Traits, is_of_this_process, traits_of
from holdfast.stores.wrapped import holds_secrets, identity_of, in_fsspec
from holdfast.urls import shown_url

T = TypeVar("T")
_LIMIT_S = 60.0
# What closes a file may have all of it to send yet.
_CLOSING = 5
_PAUSES_S = (0.1, 0.4, 1.6)
_QUICK_S = 10.0


class Connection:
    """A file system and a directory in it, as this process reaches them. Safe for threads; made at first use.

    Args:
        path: The URL; with `given`, a path in it.
        options: What a file system that the URL names is made with.
        given: The file system object of the user's, of fsspec or pyarrow, where there is one.

    Attributes:
        shown: What people are told; the URL without secrets, or the path.
        directories: Those that are known to be there, as names below the root.
    """

    def __init__(self, path: str, options: Mapping[str, Any], given: Any = None, *, is_cut: bool = False) -> None:
        self.path = path
        self.options = dict(options)
        self.given = given
        shown = shown_url(path) if given is None else path
        self.shown = shown if shown.endswith("://") else shown.rstrip("/") or shown
        self.directories: set[str] = set()
        self._is_cut = is_cut
        self._secrets = secrets_of(
            {"options": self.options, "given": given, "password": password_in(path) if given is None else None}
        )
        self._made: tuple[Any, str, Traits] | None = None
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        _connections[id(self)] = self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Connection) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self.path)

    def __reduce__(self) -> Any:
        if may_carry_secrets():
            return _again, (self.path, self.options, self.given, self._is_cut)
        if self.given is not None:
            keeps = not holds_secrets(self.given)
            return _again, (self.path, {}, self.given if keeps else None, self._is_cut or not keeps)
        path, options = without_password(self.path), without_secrets(self.options)
        return _again, (path, options, None, self._is_cut or (path, options) != (self.path, self.options))

    @property
    def filesystem(self) -> Any:
        """The fsspec object that does the work."""
        return self._connected()[0]

    @property
    def root(self) -> str:
        """The directory, as the file system has it."""
        return self._connected()[1]

    @property
    def traits(self) -> Traits:
        """What is known of the file system."""
        return self._connected()[2]

    @property
    def is_of_this_process(self) -> bool:
        """Whether it is memory of this process; told without connecting."""
        return self.path.startswith("memory://") if self.given is None else is_of_this_process(self.given)

    def learned(self, traits: Traits) -> None:
        """A probe has shown what it really does."""
        filesystem, root, _ = self._connected()
        self._made = filesystem, root, traits

    def call(self, action: str, name: str, function: Callable[[Any], T], *, repeats: bool = False) -> T:
        """Calls the file system.

        Args:
            action: What is done, for errors.
            name: To what, below the root.
            function: Takes the fsspec object; runs in another thread.
            repeats: It may be done again where it failed for a reason that passes.

        Raises:
            StorageError: It failed, or did not answer in time.
        """
        for pause_s in _PAUSES_S if repeats else ():
            begun_s = time.monotonic()
            try:
                return self._call(action, name, function)
            except StorageUnavailableError:
                # Where nobody answered, the same question again would wait as long.
                if time.monotonic() - begun_s > _QUICK_S:
                    raise
                time.sleep(pause_s * random.uniform(0.5, 1.0))
        return self._call(action, name, function)

    def close(self, action: str, name: str, file: Any) -> None:
        """Closes a file that was written, which may send all of it.

        Raises:
            StorageError: It failed, or took too long.
        """
        self._call(action, name, lambda _: file.close(), limit_s=_CLOSING * _limit_s())

    def where(self, name: str) -> str:
        """A name as people are told it."""
        return f"{self.shown}{'' if self.shown.endswith('/') else '/'}{name}" if name else self.shown

    def renew(self) -> None:
        """In a forked child, before anything else: locks that other threads held are free, and connections are not shared."""
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        if self.given is None:
            self._made = None

    def _call(self, action: str, name: str, function: Callable[[Any], T], limit_s: float | None = None) -> T:
        limit_s = _limit_s() if limit_s is None else limit_s
        filesystem, _, traits = self._connected()

        def work() -> T:
            if traits.concurrent:
                return function(filesystem)
            if not self._turn.acquire(timeout=limit_s):
                raise TimeoutError(f"another call has not come back for {limit_s:.0f} s")
            try:
                return function(filesystem)
            finally:
                self._turn.release()

        return self._limited(action, name, work, limit_s)

    def _limited(self, action: str, name: str, work: Callable[[], T], limit_s: float) -> T:
        task = _Task(work)
        if not task.run(limit_s):
            raise StorageUnavailableError(
                f"Cannot {action} {self.where(name)!r}: no answer came within {limit_s:.0f} s; check the server and the network, "
                "or set HOLDFAST_STORAGE_TIMEOUT_S"
            )
        error = task.error
        if error is None:
            return cast("T", task.value)
        # An interrupt reaches the main thread only; what is no Exception here is a bug of a library (a panic).
        if isinstance(error, HoldfastError):
            raise error
        raise fsspec_error(action, self.where(name), error, self._secrets) from cause_of(error)

    def _connected(self) -> tuple[Any, str, Traits]:
        if self._made is not None:
            return self._made
        with self._lock:
            if self._made is None:
                self._made = self._limited("connect to", "", self._connect, _limit_s())
            return self._made

    def _connect(self) -> tuple[Any, str, Traits]:
        if self._is_cut:
            raise ConfigurationError(
                f"{self.shown!r} comes from a pickle, which holds no credentials; open it anew, with the file system or the options "
                "that reach it"
            )
        if self.given is None:
            filesystem, root = make_filesystem(self.path, self.options, self._secrets)
        else:
            filesystem = in_fsspec(self.given)
            root = filesystem._strip_protocol(self.path)
        return filesystem, root.rstrip("/"), traits_of(filesystem)

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.path.rstrip("/"), identity_of(self.given), sorted(self.options.items(), key=lambda item: item[0])


class _Task(Generic[T]):
    """A piece of work in a thread of its own, which nothing waits for at the end of the program."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self, limit_s: float) -> bool:
        """Whether it ended in time."""
        threading.Thread(target=self._run, name="holdfast-fsspec", daemon=True).start()
        return self._done.wait(limit_s)

    def _run(self) -> None:
        try:
            self.value = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the work was asked for
            self.error = error
        finally:
            self._done.set()


def _again(path: str, options: Mapping[str, Any], given: Any, is_cut: bool) -> Connection:
    return Connection(path, options, given, is_cut=is_cut)


def _limit_s() -> float:
    try:
        found = float(os.environ.get("HOLDFAST_STORAGE_TIMEOUT_S", ""))
    except ValueError:
        return _LIMIT_S
    return found if found > 0 else _LIMIT_S


# By their identity: equal ones have locks of their own.
_connections: weakref.WeakValueDictionary[int, Connection] = weakref.WeakValueDictionary()


def _forked() -> None:
    for connection in list(_connections.values()):
        connection.renew()


os.register_at_fork(after_in_child=_forked)
