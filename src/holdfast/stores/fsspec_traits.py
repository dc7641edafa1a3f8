"""What file systems of fsspec can do, as far as that is known of them.

fsspec has one interface and no promises: `mv` is one step on some and a copy on others, mode `xb` is kept by the server on some and
a look before writing on others. So what counts is which class does the work. Of a class that is not known here the least is believed.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any


class Moves(enum.Enum):
    """What moving a file onto another does."""

    REPLACES = "replaces"  # in one step, as POSIX has it
    REFUSES = "refuses"  # in one step, where nothing is in the way
    COPIES = "copies"  # not one step at all


class Creates(enum.Enum):
    """How a file is created only if it is not there, with the server as the judge."""

    BY_OPENING = "open(mode='xb')"
    BY_PUTTING = "pipe_file(mode='create')"
    NOT = "not"


@dataclass(frozen=True)
class Traits:
    """What a file system can do.

    Attributes:
        appears_whole: What is written is there when it is closed, all of it, and not before: objects.
        moves: What moving one file does.
        creates: How it creates exclusively.
        directories: Whether directories have to be made and removed.
        concurrent: Whether several threads may use it at once.
        asks_to_seek: Whether reading a range has to say that it wants to seek; pyarrow's wrapper opens a stream else, from the start.
        pipelines: Whether its files are paramiko's, which wait for the answer to each of their small requests if they may.
    """

    appears_whole: bool = False
    moves: Moves = Moves.COPIES
    creates: Creates = Creates.NOT
    directories: bool = True
    concurrent: bool = False
    asks_to_seek: bool = False
    pipelines: bool = False

    @property
    def exclusive(self) -> bool:
        """Whether a record is created only if it is not there, even against a second writer at the same instant."""
        return self.creates is not Creates.NOT or self.moves is Moves.REFUSES

    @property
    def replaces_whole(self) -> bool:
        """Whether a reader of a record that is being replaced sees the old one or the new one."""
        return self.appears_whole or self.moves is Moves.REPLACES


_OBJECTS = Traits(appears_whole=True, creates=Creates.BY_PUTTING, directories=False, concurrent=True)
_ARROW_OBJECTS = Traits(appears_whole=True, directories=False, concurrent=True)
# By the full name of the class, or of one that it derives from. The order of a class's bases decides.
_KNOWN = {
    "fsspec.implementations.local.LocalFileSystem": Traits(
        moves=Moves.REPLACES, creates=Creates.BY_OPENING, concurrent=True
    ),
    # Its looks before it writes are exclusive because one thread at a time uses it; other processes do not see it at all.
    "fsspec.implementations.memory.MemoryFileSystem": Traits(
        appears_whole=True, creates=Creates.BY_PUTTING, directories=False
    ),
    # The client of paramiko mixes up answers when several threads wait for them.
    "fsspec.implementations.sftp.SFTPFileSystem": Traits(
        moves=Moves.REPLACES, creates=Creates.BY_OPENING, pipelines=True
    ),
    "fsspec.implementations.smb.SMBFileSystem": Traits(moves=Moves.REFUSES, creates=Creates.BY_OPENING),
    "fsspec.implementations.webhdfs.WebHDFS": Traits(moves=Moves.REFUSES),
    "s3fs.core.S3FileSystem": _OBJECTS,
    "gcsfs.core.GCSFileSystem": _OBJECTS,
    "adlfs.spec.AzureBlobFileSystem": _OBJECTS,
}
# pyarrow's, by `type_name`, behind fsspec's wrapper.
_ARROW = {
    "local": Traits(moves=Moves.REPLACES, concurrent=True),
    "hdfs": Traits(moves=Moves.REFUSES, concurrent=True),
    "s3": _ARROW_OBJECTS,
    "gcs": _ARROW_OBJECTS,
    "abfs": _ARROW_OBJECTS,
}
# By their schemes, too: what a name becomes has to be known without connecting. Their client sends `%41` as it is, as httpx does.
_UNQUOTED = "webdav4.fsspec.WebdavFileSystem"
_UNQUOTED_SCHEMES = ("webdav", "dav")
_MEMORY = "fsspec.implementations.memory.MemoryFileSystem"
_ARROW_WRAPPER = "fsspec.implementations.arrow.ArrowFSWrapper"
_DIRECTORY = "fsspec.implementations.dirfs.DirFileSystem"


def traits_of(filesystem: Any) -> Traits:
    """What is known of a file system object of fsspec."""
    inner = _innermost(filesystem)
    names = _class_names(inner)
    if _ARROW_WRAPPER in names:
        arrow = inner.fs
        while arrow.type_name == "subtree":
            arrow = arrow.base_fs
        return dataclasses.replace(_ARROW.get(arrow.type_name, Traits()), asks_to_seek=True)
    found = next((_KNOWN[name] for name in names if name in _KNOWN), None)
    if found is not None:
        return found
    # Who has a way of its own to move has more than the copy and delete that everybody inherits; the probe tells what it does.
    has_own_move = not type(inner).mv.__module__.startswith("fsspec.spec")
    return Traits(moves=Moves.REPLACES if has_own_move else Moves.COPIES)


def escape_in(path: str, filesystem: Any) -> str:
    """What stands before the digits of a coded character in names; told without connecting.

    Args:
        path: The URL; with a file system object, a path in it.
    """
    if filesystem is None:
        unquoted = path.partition("://")[0].lower() in _UNQUOTED_SCHEMES
    else:
        unquoted = _UNQUOTED in _class_names(_innermost(filesystem))
    return "~" if unquoted else "%"


def is_of_this_process(filesystem: Any) -> bool:
    """Whether what lies there is in this process's memory, where no other process can reach it."""
    return _MEMORY in _class_names(_innermost(filesystem))


def _innermost(filesystem: Any) -> Any:
    """What does the work behind fsspec's own wrapper for a directory."""
    while _DIRECTORY in _class_names(filesystem):
        filesystem = filesystem.fs
    return filesystem


def _class_names(filesystem: Any) -> list[str]:
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(filesystem).__mro__]
