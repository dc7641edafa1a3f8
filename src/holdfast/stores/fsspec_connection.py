"""A file system of fsspec as this process calls it: with a limit of time, and errors that say what to do and show no secret.

fsspec's calls have no limit of their own, and a server that is gone may keep one forever. So each runs in a thread that nobody joins,
and who waits for it stops after 60 s (`HOLDFAST_STORAGE_TIMEOUT_S`). What reads, or may be repeated, is tried again a few times where
the failure is of a kind that passes; above that, `persistence.retry` decides.

A client that does one thing at a time often holds one connection, and most never make it anew. So what fails as a broken connection
does ends its `Session`; the next call makes a file system object of its own. And files go over a second one (`bulk`), so that no
sign of life waits behind them.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from holdfast.errors import ConfigurationError, HoldfastError, StorageError, StorageUnavailableError
from holdfast.secrecy import may_carry_secrets, password_in, secrets_of, without_password, without_secrets
from holdfast.stores.fsspec_errors import breaks_connection, cause_of, fsspec_error
from holdfast.stores.fsspec_made import make_filesystem
from holdfast.stores.fsspec_session import CallFailedError, NoAnswerError, Session, limited
from holdfast.stores.fsspec_traits import Traits, escape_in, is_of_this_process, traits_of
from holdfast.stores.wrapped import holds_secrets, identity_of, in_fsspec, recipe_of
from holdfast.urls import shown_url

T = TypeVar("T")
_log = logging.getLogger("holdfast")
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
        main: The connection that this one is the `bulk` of.

    Attributes:
        shown: What people are told; the URL without secrets, or the path.
        directories: Those that are known to be there, as names below the root.
        remains: Files of which failed tries of ours may have left a part.
        escape: What stands before the digits of a coded character in names.
    """

    def __init__(
        self,
        path: str,
        options: Mapping[str, Any],
        given: Any = None,
        *,
        is_cut: bool = False,
        main: Connection | None = None,
    ) -> None:
        self.path = path
        self.options = dict(options)
        self.given = given
        shown = shown_url(path) if given is None else path
        self.shown = shown if shown.endswith("://") else shown.rstrip("/") or shown
        self.directories: set[str] = set() if main is None else main.directories
        self.remains: set[str] = set() if main is None else main.remains
        self.escape = escape_in(path, given)
        self._main = main
        self._bulk: Connection | None = None
        self._is_cut = is_cut
        self._secrets = secrets_of(
            {"options": self.options, "given": given, "password": password_in(path) if given is None else None}
        )
        self._session: Session | None = None
        self._place: tuple[str, str] | None = None
        self._traits: Traits | None = None
        # The given object serves one connection, as long as that holds; then others are made by its recipe.
        self._is_given_used = main is not None
        self._recipe: Callable[[], Any] | None = None
        self._refusal: tuple[float, StorageUnavailableError] | None = None
        self._lock = threading.RLock()
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
    def root(self) -> str:
        """The directory, as the file system has it."""
        return self._found()[0]

    @property
    def root_marker(self) -> str:
        """What the file system's own root is called."""
        return self._found()[1]

    @property
    def traits(self) -> Traits:
        """What is known of the file system."""
        if self._main is not None:
            return self._main.traits
        if self._traits is None:
            self.session()
        assert self._traits is not None
        return self._traits

    @property
    def bulk(self) -> Connection:
        """For files: the same place by a file system object of its own, where one object does one call at a time."""
        if self._main is not None or self.traits.concurrent or self.is_of_this_process or not self._can_be_made_anew:
            return self
        with self._lock:
            if self._bulk is None:
                second = Connection(self.path, self.options, self.given, is_cut=self._is_cut, main=self)
                try:
                    second.session()
                except StorageError as error:
                    _log.warning(
                        "%s takes no second connection (%s), so signs of life wait behind files there: a driver on another machine could "
                        "take a run over from one that stores large files",
                        self.shown,
                        error,
                    )
                    second = self
                self._bulk = second
            return self._bulk

    @property
    def is_of_this_process(self) -> bool:
        """Whether it is memory of this process; told without connecting."""
        return self.path.startswith("memory://") if self.given is None else is_of_this_process(self.given)

    def learned(self, traits: Traits) -> None:
        """A probe has shown what it really does."""
        self._traits = traits

    def call(
        self,
        action: str,
        name: str,
        function: Callable[[Any], T],
        *,
        repeats: bool = False,
        session: Session | None = None,
    ) -> T:
        """Calls the file system.

        Args:
            action: What is done, for errors.
            name: To what, below the root.
            function: Takes the fsspec object; runs in another thread.
            repeats: It may be done again where it failed for a reason that passes.
            session: What a file was opened in, for what is done with that file.

        Raises:
            StorageError: It failed, or did not answer in time.
        """
        for pause_s in _PAUSES_S if repeats else ():
            begun_s = time.monotonic()
            try:
                return self._call(action, name, function, session)
            except StorageUnavailableError:
                # Where nobody answered, the same question again would wait as long.
                if time.monotonic() - begun_s > _QUICK_S:
                    raise
                time.sleep(pause_s * random.uniform(0.5, 1.0))
        return self._call(action, name, function, session)

    def close(self, action: str, name: str, file: Any, session: Session) -> None:
        """Closes a file that was written, which may send all of it.

        Raises:
            StorageError: It failed, or took too long.
        """
        self._call(action, name, lambda _: file.close(), session, _CLOSING * _limit_s())

    def where(self, name: str) -> str:
        """A name as people are told it."""
        return f"{self.shown}{'' if self.shown.endswith('/') else '/'}{name}" if name else self.shown

    def renew(self) -> None:
        """In a forked child, before anything else: locks that other threads held are free, and connections are not shared."""
        self._lock = threading.RLock()
        if self._session is not None:
            self._session, self._is_given_used = None, True

    def session(self) -> Session:
        """What calls go over now; made where there is none."""
        if (session := self._session) is not None:
            return session
        came_s = time.monotonic()
        with self._lock:
            if self._session is not None:
                return self._session
            # Whoever waited while another one tried in vain need not try as long.
            if self._refusal is not None and self._refusal[0] > came_s:
                raise StorageUnavailableError(str(self._refusal[1]))
            try:
                self._session = self._limited("connect to", "", lambda: limited(self._connect, _limit_s()), _limit_s())
            except StorageUnavailableError as error:
                self._refusal = time.monotonic(), error
                raise
            return self._session

    def _call(
        self,
        action: str,
        name: str,
        function: Callable[[Any], T],
        session: Session | None = None,
        limit_s: float | None = None,
    ) -> T:
        limit_s = _limit_s() if limit_s is None else limit_s
        session = session or self.session()

        def work() -> T:
            try:
                return session.run(function, limit_s)
            except NoAnswerError:
                self._drop(session)
                raise
            except CallFailedError as failed:
                if breaks_connection(failed.error):
                    self._drop(session)
                raise

        return self._limited(action, name, work, limit_s)

    def _drop(self, session: Session) -> None:
        """The next call is to connect anew."""
        if self._session is not session or self.traits.concurrent or not self._can_be_made_anew:
            return
        # What was asked for may be done yet, and a file that is opened late is emptied, whoever has stored it meanwhile.
        if self._main is not None and session.hangs:
            return
        with self._lock:
            if self._session is session:
                session.is_lost, self._session, self._is_given_used = True, None, True

    def _limited(self, action: str, name: str, work: Callable[[], T], limit_s: float) -> T:
        try:
            return work()
        except NoAnswerError:
            raise StorageUnavailableError(
                f"Cannot {action} {self.where(name)!r}: no answer came within {limit_s:.0f} s; check the server and the network, "
                "or set HOLDFAST_STORAGE_TIMEOUT_S"
            ) from None
        except CallFailedError as failed:
            error = failed.error
        # An interrupt reaches the main thread only; what is no Exception here is a bug of a library (a panic).
        if isinstance(error, HoldfastError):
            raise error
        raise fsspec_error(action, self.where(name), error, self._secrets) from cause_of(error)

    def _connect(self, _: object) -> Session:
        if self._is_cut:
            raise ConfigurationError(
                f"{self.shown!r} comes from a pickle, which holds no credentials; open it anew, with the file system or the options "
                "that reach it"
            )
        if self.given is None:
            filesystem, root = make_filesystem(self.path, self.options, self._secrets)
        else:
            self._recipe = recipe_of(self.given)
            use_recipe = self._recipe if self._is_given_used else None
            filesystem = use_recipe() if use_recipe is not None else in_fsspec(self.given)
            root = filesystem._strip_protocol(self.path)
        found = traits_of(filesystem)
        self._place = root.rstrip("/"), str(filesystem.root_marker)
        self._traits = self._traits or found
        return Session(filesystem, concurrent=found.concurrent)

    def _found(self) -> tuple[str, str]:
        if self._place is None:
            self.session()
        assert self._place is not None
        return self._place

    @property
    def _can_be_made_anew(self) -> bool:
        return self.given is None or self._recipe is not None

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.path.rstrip("/"), identity_of(self.given), sorted(self.options.items(), key=lambda item: item[0])


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
