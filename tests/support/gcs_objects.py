"""Buckets of Google's kind, in memory: each object has a generation, and conditions are about that."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Of an upload in parts, all but the last.
SMALLEST_PART_BYTES = 5 << 20


class Refused(Exception):  # noqa: N818 - an answer, and no error of this program
    """What is asked for is not done.

    Attributes:
        status: Of HTTP.
        code: The service's name for the reason.
    """

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Stored:
    """One version of an object.

    Attributes:
        kept: Headers that come back with it.
    """

    data: bytes
    generation: int
    e_tag: str
    modified: datetime.datetime
    kept: Mapping[str, str]


@dataclass
class _Upload:
    name: str
    kept: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A part of a listing.

    Attributes:
        objects: Names with their objects, in order.
        prefixes: What stands for names that have the delimiter further on, in order.
        next_token: Where the next page begins, if there is one.
    """

    objects: Sequence[tuple[str, Stored]]
    prefixes: Sequence[str]
    next_token: str | None


class Bucket:
    """A bucket; safe for threads."""

    def __init__(self) -> None:
        self._objects: dict[str, Stored] = {}
        self._uploads: dict[str, _Upload] = {}
        self._generations = itertools.count(1_700_000_000_000_000)
        self._lock = threading.Lock()

    @property
    def num_unfinished(self) -> int:
        """Uploads in parts that were begun, and neither completed nor aborted."""
        return len(self._uploads)

    def get(self, name: str) -> Stored:
        with self._lock:
            found = self._objects.get(name)
        if found is None:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return found

    def put(self, name: str, data: bytes, kept: Mapping[str, str], if_generation: int | None) -> Stored:
        with self._lock:
            found = self._objects.get(name)
            if if_generation is not None and if_generation != (found.generation if found else 0):
                raise Refused(
                    412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold."
                )
            return self._store(name, data, kept)

    def delete(self, name: str) -> None:
        with self._lock:
            if self._objects.pop(name, None) is None:
                raise Refused(404, "NoSuchKey", "The specified key does not exist.")

    def list(self, prefix: str, delimiter: str, after: str, limit: int) -> Page:
        with self._lock:
            names = sorted((each for each in self._objects if each.startswith(prefix)), key=str.encode)
            objects: list[tuple[str, Stored]] = []
            prefixes: list[str] = []
            for name in names:
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                shown = name if cut < 0 else name[: cut + len(delimiter)]
                if shown.encode() <= after.encode() or shown in prefixes[-1:]:
                    continue
                if len(objects) + len(prefixes) == limit:
                    last = max([*prefixes[-1:], *(each for each, _ in objects[-1:])], key=str.encode)
                    return Page(objects, prefixes, last)
                if cut < 0:
                    objects.append((name, self._objects[name]))
                else:
                    prefixes.append(shown)
        return Page(objects, prefixes, None)

    def begin_upload(self, name: str, kept: Mapping[str, str]) -> str:
        upload_id = secrets.token_hex(16)
        with self._lock:
            self._uploads[upload_id] = _Upload(name, kept)
        return upload_id

    def put_part(self, name: str, upload_id: str, number: int, data: bytes) -> str:
        with self._lock:
            self._upload(name, upload_id).parts[number] = data
        return _e_tag(data)

    def complete_upload(self, name: str, upload_id: str, named: Sequence[tuple[int, str]]) -> Stored:
        """Makes the object of parts that are named by number and tag."""
        with self._lock:
            upload = self._upload(name, upload_id)
            numbers = [number for number, _ in named]
            if not named or numbers != sorted(set(numbers)):
                raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
            parts = []
            for number, e_tag in named:
                data = upload.parts.get(number)
                if data is None or _e_tag(data) != e_tag:
                    raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
                parts.append(data)
            if any(len(data) < SMALLEST_PART_BYTES for data in parts[:-1]):
                raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum object size.")
            del self._uploads[upload_id]
            return self._store(name, b"".join(parts), upload.kept)

    def abort_upload(self, name: str, upload_id: str) -> None:
        with self._lock:
            self._upload(name, upload_id)
            del self._uploads[upload_id]

    def _upload(self, name: str, upload_id: str) -> _Upload:
        found = self._uploads.get(upload_id)
        if found is None or found.name != name:
            raise Refused(404, "NoSuchUpload", "The requested upload was not found.")
        return found

    def _store(self, name: str, data: bytes, kept: Mapping[str, str]) -> Stored:
        now = datetime.datetime.now(datetime.UTC)
        made = Stored(data, next(self._generations), _e_tag(data), now, dict(kept))
        self._objects[name] = made
        return made


def _e_tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
