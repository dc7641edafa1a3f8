"""The connection of this process to one bucket: made at first use, shared by all stores in it, and never forked.

obstore runs threads of its own. They do not come along into a forked child, where every call would wait for them forever: so a
child of a process that has used a bucket gets an error instead, and a child of one that has not makes its own connection.

Time limits. A connection is made within 5 s and a request answered within 60 s. What fails for a reason that passes (5xx,
refused, broken or silent connections) is sent again for 120 s, with growing random pauses, which a warning tells of, as it does of a
server that says nothing for some seconds; 8 times only as long as the server has never answered. Above that, `persistence.retry` decides. `connect_timeout`, `request_timeout`, `retry_timeout` (all in seconds) and `max_retries` in a URL
change them. Bytes of files have longer on a thin line (`object_line`). `object_calls` sends again what is one request; what is many, a listing or an upload in parts, the library does.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import importlib
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from holdfast.errors import ConfigurationError, StorageError
from holdfast.stores.object_calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, Calls, Judgement, Patience
from holdfast.stores.object_errors import is_throttled, object_error, unusable
from holdfast.stores.object_gate import Gate
from holdfast.stores.object_given import given_credentials, profile_credentials
from holdfast.stores.object_line import LONGER, Line
from holdfast.stores.object_url import CLIENT_OPTIONS, Place, from_environment, is_on

_log = logging.getLogger("holdfast")
_LIMITS_S = {"connect_timeout": 5.0, "request_timeout": 60.0, "retry_timeout": 120.0}
# The time decides: how often a server that is away can be asked in it is a matter of chance.
_MAX_RETRIES = 1000
_TELL_EVERY_S = 30.0
# A start that cannot work is to be told of soon: the first request of a run is not sent again for as long.
_PROBE_RETRIES = 2
_PROBE_LIMIT_S = 10.0
# How often a body may break off before all of it is asked for again. Refusals are sent again as often before the gate hears of them,
# so there are few.
_BODY_RETRIES = 2
_CLASSES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore", "http": "HTTPStore"}
_SERVICES = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Storage"}
# What the library calls an option that has another name here.
_NAMES = {"gs": {"endpoint": "base_url"}}
_PREFIXES = ("AWS_", "GOOGLE_", "AZURE_")
_T = TypeVar("_T")


class Resends(enum.Enum):
    """Whether the library itself sends requests again that failed for a reason that passes."""

    NEVER = "for what is one request: its caller does"
    ALWAYS = "for what is many, of which one may fail"
    SOON_OVER = "for the first look at a bucket"
    GOES_ON = "for many bytes: where they break off, the library asks for the rest"


class Client:
    """One bucket, as this process reaches it. Safe for threads.

    Attributes:
        place: Where it is.
        exclusive: Whether `create` never overwrites; taken for true until a probe has shown otherwise.
        keeps_nonces: Whether an object keeps what its write was called; taken for true until a probe has shown otherwise.
        answers_ranges: Whether a part of an object can be asked for; taken for true until an answer has shown otherwise.
        calls: What is on its way.
        line: The network to it.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.exclusive = True
        self.keeps_nonces = True
        self.answers_ranges = True
        self.calls = self._make_calls()
        self.line = self._make_line()
        self._told_s: dict[str, float] = {}
        self._handles: dict[tuple[Resends, bool], Any] = {}
        self._lock = threading.Lock()
        self._provider: list[Any] = []
        self._found_around: dict[str, str] | None = None
        self._name_writes()

    @property
    def obstore(self) -> Any:
        """The library.

        Raises:
            ConfigurationError: It is not installed.
        """
        return _library(self.place.root)

    def handle(self, resends: Resends = Resends.NEVER, *, num_bytes: int = 0) -> Any:
        """The library's object for the bucket.

        Args:
            resends: Whether the library itself sends failed requests again.
            num_bytes: How much of a file the request carries; see `object_line`.

        Raises:
            StorageError: This process was forked from one that had used object storage.
            ConfigurationError: obstore is not installed, or cannot use the options.
        """
        _process.enter(self.place.root)
        key = resends, self.line.is_thin_for(num_bytes)
        found = self._handles.get(key)
        if found is None:
            with self._lock:
                found = self._handles.get(key)
                if found is None:
                    found = self._handles[key] = self._connect(*key)
        return found

    def call(
        self,
        action: str,
        name: str,
        request: Callable[[], Awaitable[_T]],
        *,
        once: bool = False,
        bulk: bool = False,
        slow: bool = False,
    ) -> _T:
        """What a request gives; the wait for it can be broken off.

        Args:
            action: What it does, as errors say it.
            name: The object.
            request: Called on the loop of `object_calls`, for each try.
            once: It is not tried again.
            bulk: It carries bytes of files, and so waits where the store asks for fewer requests.
            slow: It may take long though all is well.

        Raises:
            StorageError: It failed.
        """
        return self.outcome(action, name, self.calls.begin(request, once=once, bulk=bulk, slow=slow))

    def outcome(self, action: str, name: str, future: Future[_T]) -> _T:
        """Waits for a request that was begun; if the wait is broken off, so is the request.

        Raises:
            StorageError: It failed.
        """
        try:
            # Not `result`: what is raised here is a signal's.
            error = future.exception()
        except BaseException:
            future.cancel()
            raise
        if error is None:
            return future.result()
        with self.telling(action, name):
            raise error

    @contextlib.contextmanager
    def telling(self, action: str, name: str) -> Iterator[None]:
        """Whatever obstore raises in the block becomes a `StorageError` that names the object."""
        try:
            yield
        except (StorageError, ConfigurationError):
            raise
        except BaseException as error:
            # The library's errors have no common class (some are built in), and a bug of its own, a panic, is no Exception.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise self.error(action, name, error) from None
            raise

    def error(self, action: str, name: str, error: BaseException) -> StorageError:
        """The `StorageError` for what obstore raised."""
        place = self.place
        return object_error(
            action,
            f"{place.root}/{name}" if name else place.root,
            error,
            service=place.service,
            endpoint=self._endpoint(),
            secrets=place.secrets(),
            is_anonymous=is_on(place.option("skip_signature")),
        )

    def provider(self) -> Any:
        """What gives the library credentials that it would not find by itself; one for all, as some ask a person. None without such.

        Raises:
            StorageAccessError: There is no such profile, or boto3, which reads them, is missing.
        """
        if not self._provider:
            place = self.place
            provider = given_credentials(place)
            if provider is None and place.service == "s3" and place.option("access_key_id") is None:
                options = {**self._around(), **dict(place.options)}
                provider = profile_credentials(place, options.get("profile"))
            self._provider = [provider]
        return self._provider[0]

    def forget(self) -> None:
        """Lets go of what belongs to the parent process; in a forked child, before anything else."""
        self._handles = {}
        self._lock = threading.Lock()
        self._provider = []
        self._found_around = None
        self._name_writes()
        self.calls = self._make_calls()
        self.line = self._make_line()

    def nonce(self) -> str:
        """What a write is called, by which it is known again; no other write of any process has the same."""
        return f"{self._tag}-{next(self._writes)}"

    def _name_writes(self) -> None:
        # Random once: for each of many small files a call of the system would cost as much as to read the file.
        self._tag = secrets.token_hex(16)
        self._writes = itertools.count()

    def _make_calls(self) -> Calls:
        retries, limit_s = _resending(dict(self.place.options))
        return Calls(Gate(self.place.root), self._judge, Patience(retries, limit_s), self._tell)

    def _make_line(self) -> Line:
        return Line(self.place.root, _silence_s(dict(self.place.options)), self.calls)

    def _tell(self, error: BaseException | None, waited_s: float) -> None:
        now_s, what = time.monotonic(), "error" if error is not None else "silence"
        if now_s - self._told_s.get(what, -_TELL_EVERY_S) < _TELL_EVERY_S:
            return
        self._told_s[what] = now_s
        if error is None:
            _log.warning(
                "%s: %s has said nothing for %.0f s now, and its answer is waited for; check the endpoint and the network",
                self.place.root,
                self._endpoint(),
                waited_s,
            )
        else:
            limit_s = self.calls.patience.limit_s
            _log.warning(
                "%s; for %.0f s now, and it is tried again until %.0f s are over",
                self.error("reach", "", error),
                waited_s,
                limit_s,
            )

    def _judge(self, error: BaseException) -> Judgement:
        if isinstance(error, StorageError | ConfigurationError):
            return Judgement.FINAL
        if is_throttled(error):
            return Judgement.TOO_MANY
        return Judgement.MAY_PASS if self.error("", "", error).may_pass else Judgement.FINAL

    def _around(self) -> dict[str, str]:
        """The options of the environment and of Amazon's files, read once: an error is made on the loop, and a missing object is one."""
        if self._found_around is None:
            place = self.place
            self._found_around = from_environment(place.service, os.environ, place.option("profile"))
        return self._found_around

    def _endpoint(self) -> str:
        place = self.place
        found = place.option("endpoint") or self._around().get("endpoint")
        # An endpoint may have a password in it, as any URL.
        return found.rpartition("@")[2] if found else _SERVICES.get(place.service, place.root)

    def _connect(self, resends: Resends, is_patient: bool) -> Any:
        place = self.place
        _library(place.root)
        options = {**self._around(), **dict(place.options)}
        ours = {name: options.pop(name) for name in list(options) if name in CLIENT_OPTIONS}
        if is_patient:
            longer_s = LONGER * _silence_s(ours)
            # What breaks off late is to be sent again, too.
            ours |= {"request_timeout": str(longer_s), "retry_timeout": str(_resending(ours)[1] + longer_s)}
        if options.get("endpoint", "").startswith("http://"):
            ours.setdefault("allow_http", "true")
        arguments: dict[str, Any] = {
            "client_options": _client_options(ours),
            "retry_config": _retry_config(ours, resends),
        }
        if place.service == "s3" and _is_encrypted(options):
            # As Amazon's own libraries: TLS guards the bytes on their way, and a second digest of all of them costs as much as to send them.
            options.setdefault("unsigned_payload", os.environ.get("AWS_UNSIGNED_PAYLOAD") or "true")
        if place.service != "http":
            names = _NAMES.get(place.service, {})
            arguments["config"] = {names.get(name, name): value for name, value in options.items() if name != "profile"}
        if not is_on(options.get("skip_signature")) and (provider := self.provider()) is not None:
            arguments["credential_provider"] = provider
        store = getattr(importlib.import_module("obstore.store"), _CLASSES[place.service])
        try:
            return store(place.root if place.service == "http" else place.bucket, **arguments)
        except Exception as error:  # noqa: BLE001 - as above
            raise ConfigurationError(unusable(place.root, error, place.secrets())) from None


def _is_encrypted(options: Mapping[str, str]) -> bool:
    return options.get("endpoint", "https://").lower().startswith("https://")


def _client_options(ours: dict[str, str]) -> dict[str, Any]:
    limits = {name: float(ours.get(name, value)) for name, value in _LIMITS_S.items()}
    return {
        "connect_timeout": datetime.timedelta(seconds=limits["connect_timeout"]),
        "timeout": datetime.timedelta(seconds=limits["request_timeout"]),
        "allow_http": is_on(ours.get("allow_http")),
        "user_agent": "holdfast",
    }


def _silence_s(ours: Mapping[str, str]) -> float:
    """How long a request may take with all its data."""
    return float(ours.get("request_timeout", _LIMITS_S["request_timeout"]))


def _resending(ours: Mapping[str, str]) -> tuple[int, float]:
    """How often, and for how many seconds, a request is sent again."""
    return (
        int(float(ours.get("max_retries", _MAX_RETRIES))),
        float(ours.get("retry_timeout", _LIMITS_S["retry_timeout"])),
    )


def _retry_config(ours: Mapping[str, str], resends: Resends) -> dict[str, Any]:
    retries, limit_s = _resending(ours)
    if resends is Resends.NEVER:
        retries = 0
    elif resends is Resends.SOON_OVER:
        retries, limit_s = min(retries, _PROBE_RETRIES), min(limit_s, _PROBE_LIMIT_S)
    elif resends is Resends.GOES_ON:
        # Nothing that lasted as long as a silence may: of that a warning tells, here.
        retries, limit_s = min(retries, _BODY_RETRIES), min(limit_s, _silence_s(ours) / 2)
    return {
        "max_retries": retries,
        "retry_timeout": datetime.timedelta(seconds=limit_s),
        "backoff": {
            "init_backoff": datetime.timedelta(seconds=FIRST_PAUSE_S),
            "max_backoff": datetime.timedelta(seconds=LONGEST_PAUSE_S),
            "base": 2.0,
        },
    }


def _library(root: str) -> Any:
    try:
        return importlib.import_module("obstore")
    except ImportError as error:
        raise ConfigurationError(
            f"{root!r} is on an object store, and the package that speaks to it is not installed; install it with: "
            f'pip install "holdfast[s3]"'
        ) from error


class _Process:
    """What this process has done with object stores."""

    def __init__(self) -> None:
        self._clients: dict[tuple[Place, tuple[tuple[str, str], ...]], Client] = {}
        self._lock = threading.Lock()
        self._used = False
        self._parent = 0

    def client(self, place: Place) -> Client:
        with self._lock:
            # What the environment says may change from one run of a notebook to the next.
            key = place, tuple(sorted((name, os.environ[name]) for name in os.environ if name.startswith(_PREFIXES)))
            found = self._clients.get(key)
            if found is None:
                found = self._clients[key] = Client(place)
            return found

    def enter(self, root: str) -> None:
        """Notes that this process is about to use an object store.

        Raises:
            StorageError: It may not: the threads that would do it were left behind in its parent.
        """
        if self._parent:
            raise StorageError(
                f"Cannot use {root!r} in this process: it was forked from process {self._parent} after that one had used "
                "object storage, so every call would hang; start it by multiprocessing's 'spawn' method, or fork before "
                "the first use of storage"
            )
        self._used = True

    def forked(self) -> None:
        """Called in a new child: other threads may have held the locks."""
        self._lock = threading.Lock()
        if self._used and not self._parent:
            self._parent = os.getppid()
        for client in self._clients.values():
            client.forget()


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)


def client_of(place: Place) -> Client:
    """This process's client for a place; the same for all who ask while the environment is the same."""
    return _process.client(place)
