"""Finds out, at the start of a run, whether a file system can be used, and what it really does."""

from __future__ import annotations

import dataclasses
import logging

from holdfast.errors import StorageError, StorageUnavailableError, StoreExistsError
from holdfast.stores.fsspec_connection import Connection
from holdfast.stores.fsspec_look import list_level, look, read_whole, size_of
from holdfast.stores.fsspec_traits import Creates, Moves, Traits
from holdfast.stores.fsspec_write import (
    create_by_opening,
    create_by_putting,
    make_directory,
    move,
    put_small,
    remove_file,
    remove_quietly,
)

_log = logging.getLogger("holdfast")
_warned: set[str] = set()


def probe(connection: Connection, directory: str, first: str, second: str) -> None:
    """Writes, lists, moves and removes files of a few bytes; the connection learns what the file system does.

    Args:
        directory: Where, below the root; made if it is missing.
        first: A name in it that nobody else uses; a death in here leaves it.
        second: Another one.

    Raises:
        StorageError: It cannot be used.
    """
    make_directory(connection, directory)
    first, second = (f"{directory}/{each}" if directory else each for each in (first, second))
    traits = connection.traits
    try:
        put_small(connection, first, b"holdfast")
        _require_listed(connection, directory, first)
        if traits.creates is not Creates.NOT and not _refuses_to_create(connection, first, traits.creates):
            traits = dataclasses.replace(traits, creates=Creates.NOT)
            put_small(connection, first, b"holdfast")
        if not traits.appears_whole and traits.moves is not Moves.COPIES:
            put_small(connection, second, b"moved")
            traits = dataclasses.replace(traits, moves=_moves(connection, first, second))
    finally:
        remove_quietly(connection, second)
        remove_file(connection, first)
    connection.learned(traits)
    _warn(connection, traits)


def _require_listed(connection: Connection, directory: str, name: str) -> None:
    listed = {
        str(entry["name"]).rstrip("/").rpartition("/")[2]: size_of(entry) for entry in list_level(connection, directory)
    }
    if listed.get(name.rpartition("/")[2], 0) not in (len(b"holdfast"), None):
        raise StorageUnavailableError(
            f"Cannot use {connection.where(directory)!r} for storage: what was written there is not listed, or with another size"
        )


def _refuses_to_create(connection: Connection, name: str, creates: Creates) -> bool:
    """Whether what is there already is not created again."""
    create = create_by_opening if creates is Creates.BY_OPENING else create_by_putting
    try:
        create(connection, name, b"again")
    except StoreExistsError:
        return True
    except StorageUnavailableError:
        raise
    except StorageError:
        # It does not know the mode, or has an error of its own for this. Believed is what it says plainly.
        return False
    return False


def _moves(connection: Connection, first: str, second: str) -> Moves:
    """What moving the second file onto the first one does."""
    try:
        move(connection, second, first)
    except StorageUnavailableError:
        raise
    except StorageError:
        is_left = look(connection, second) is not None and read_whole(connection, first) == b"holdfast"
        return Moves.REFUSES if is_left else Moves.COPIES
    if read_whole(connection, first) == b"moved" and look(connection, second) is None:
        return Moves.REPLACES
    # It said that it did, and did not: some drop the server's answer.
    return Moves.REFUSES if look(connection, second) is not None else Moves.COPIES


def _warn(connection: Connection, traits: Traits) -> None:
    weak = []
    if not traits.exclusive:
        weak.append(
            "it cannot create a file only if it is not there, as far as is known: should two drivers start one run in the same instant, "
            "both may go on"
        )
    if not traits.replaces_whole:
        weak.append(
            "it cannot replace a file in one step: who reads a record (a note, the user's metadata) in the instant of its "
            "replacement may find none, or half of it, and a death in that instant may leave it so"
            + (
                ""
                if traits.exclusive
                else "; that holds for the manifest that makes a checkpoint, too, which then counts as none"
            )
        )
    if weak and connection.shown not in _warned:
        _warned.add(connection.shown)
        _log.warning(
            "%s is weaker than a local disk: %s; everything else is as safe as elsewhere",
            connection.shown,
            "; and ".join(weak),
        )
