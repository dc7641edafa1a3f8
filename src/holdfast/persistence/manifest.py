"""Manifests: the list of what a checkpoint consists of, to bytes and back.

A manifest is untrusted input when it is read: whoever can write to the store must not thereby write, or read,
outside the directory that a checkpoint is restored into.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from holdfast.errors import FormatError, StoreNotFoundError
from holdfast.persistence import layout
from holdfast.persistence.links import stays_inside
from holdfast.records import FORMAT_VERSION, CommittedCheckpoint, Manifest, Record, StoredFile
from holdfast.stores.base import Store

# What one component of an honest path can be checked by; anything else takes the slow, exact way.
_PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII)


class _Version(Record, frozen=True):
    format_version: int = FORMAT_VERSION


class _FileSize(Record, frozen=True):
    size_bytes: int = 0


class _Summary(Record, frozen=True):
    """A manifest without the details of its files: what a listing of a run needs, at a third of the cost."""

    format_version: int = FORMAT_VERSION
    id: str = ""
    name: str = ""
    report_index: int = 0
    created: str = ""
    epoch: int = 0
    attempt: int = 0
    world_size: int = 0
    metrics: msgspec.Raw = msgspec.Raw(b"{}")
    files: tuple[_FileSize, ...] = ()


_Read = TypeVar("_Read", Manifest, _Summary)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Manifest)
_summary_decoder = msgspec.json.Decoder(_Summary)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON, one line a file, so that a person can read and compare it."""
    head = _encoder.encode(msgspec.structs.replace(manifest, files=()))
    lines = b",\n".join([_encoder.encode(file) for file in manifest.files])
    # `files` is the record's last field, so the head ends in its empty list.
    return head.removesuffix(b"[]}") + (b"[\n" + lines + b"\n]}\n" if lines else b"[]}\n")


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Reads a manifest; unknown fields are ignored, missing ones have defaults.

    Args:
        where: What the text of an error calls it, e.g. its path.

    Raises:
        FormatError: It is no manifest, was written by a newer Holdfast, or one of its paths or links leads out of
            the checkpoint.
    """
    manifest = _decode(_decoder, data, where)
    _check_files(manifest.files, where)
    return manifest


def decode_committed(data: bytes, where: str) -> CommittedCheckpoint:
    """Reads what a listing needs of a manifest; the paths of its files are not looked at.

    Raises:
        FormatError: As `decode_manifest`.
    """
    found = _decode(_summary_decoder, data, where)
    return CommittedCheckpoint(
        name=found.name,
        id=found.id,
        report_index=found.report_index,
        created=found.created,
        epoch=found.epoch,
        attempt=found.attempt,
        world_size=found.world_size,
        # A copy, or this small piece would keep the whole file's bytes alive.
        metrics=found.metrics.copy(),
        num_files=len(found.files),
        size_bytes=sum([file.size_bytes for file in found.files]),
    )


def committed_of(manifest: Manifest) -> CommittedCheckpoint:
    """The manifest's checkpoint, without its list of files."""
    return CommittedCheckpoint(
        name=manifest.name,
        id=manifest.id,
        report_index=manifest.report_index,
        created=manifest.created,
        epoch=manifest.epoch,
        attempt=manifest.attempt,
        world_size=manifest.world_size,
        metrics=manifest.metrics,
        num_files=len(manifest.files),
        size_bytes=sum([file.size_bytes for file in manifest.files]),
    )


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of the checkpoint at the root of `store`, or None where there is none.

    Raises:
        FormatError: There is one that cannot be used.
        StorageError: It could not be read.
    """
    try:
        data = store.read(layout.MANIFEST)
    except StoreNotFoundError:
        return None
    return decode_manifest(data, f"{store.url}/{layout.MANIFEST}")


def _decode(decoder: msgspec.json.Decoder[_Read], data: bytes, where: str) -> _Read:
    try:
        found = decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        # A newer format may have changed the very fields that cannot be read: then that is the thing to say.
        if (version := _version_of(data)) is not None and version > FORMAT_VERSION:
            raise _too_new(where, version) from error
        raise FormatError(
            f"{where} is no manifest that Holdfast can read ({error}); the checkpoint is damaged or the file is not ours"
        ) from error
    if found.format_version > FORMAT_VERSION:
        raise _too_new(where, found.format_version)
    return found


def _version_of(data: bytes) -> int | None:
    try:
        return msgspec.json.decode(data, type=_Version).format_version
    except (msgspec.DecodeError, RecursionError):
        return None


def _too_new(where: str, version: int) -> FormatError:
    return FormatError(
        f"{where} has format version {version}, written by a newer Holdfast; this one reads up to {FORMAT_VERSION}: "
        "upgrade with: pip install -U holdfast"
    )


def _check_files(files: Sequence[StoredFile], where: str) -> None:
    kinds: dict[str, str] = {}
    links: dict[str, str] = {}
    for file in files:
        if _PLAIN_PATH.fullmatch(file.path) is None:
            layout.check_record_path(file.path, where)
            if file.path in (layout.MANIFEST, layout.METADATA):
                raise FormatError(f"{where} lists {file.path!r}, a name that is Holdfast's own")
        if file.path in kinds:
            raise FormatError(f"{where} lists {file.path!r} twice")
        if file.size_bytes < 0:
            raise FormatError(f"{where} says that {file.path!r} has {file.size_bytes} bytes")
        kinds[file.path] = file.kind
        if file.kind == "symlink":
            links[layout.decode_path(file.path)] = layout.decode_path(file.target or "")
    _check_parents(kinds, where)
    for link, target in links.items():
        if "\0" in target or not stays_inside(link, links):
            raise FormatError(f"{where} lists the link {link!r} to {target!r}, which leads out of the checkpoint")


def _check_parents(kinds: dict[str, str], where: str) -> None:
    known: set[str] = set()
    for path in kinds:
        parent = path.rpartition("/")[0]
        while parent and parent not in known:
            if kinds.get(parent, "directory") != "directory":
                raise FormatError(f"{where} lists {path!r} below {parent!r}, which is a {kinds[parent]}")
            known.add(parent)
            parent = parent.rpartition("/")[0]
