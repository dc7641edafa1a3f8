"""Shows files of a directory below a name of ours, in a directory that can be reported, without copying them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.worker.staging_directory import staging_directory

# No pattern of Transformers' own finds it: neither its rotation (`checkpoint-*`) nor an upload to the hub (which leaves out `_*`).
PREFIX = "_holdfast-"
# What file systems without links answer, those that have too many, and those where only a file's owner may make one.
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def remove_litter(output_dir: str) -> None:
    """Removes what a process that was killed in the middle of a report has left.

    Nobody needs it any more: its names are links, and what a driver still stores of an attempt before this one it holds open.
    """
    for path in Path(output_dir).glob(f"{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Presented:
    """A directory that can be reported.

    Attributes:
        is_ours: Nobody else has its files, so they may be taken over.
    """

    directory: str
    is_ours: bool


@contextlib.contextmanager
def linked(output_dir: str, source: str, paths: Sequence[str], name: str) -> Iterator[Presented]:
    """A directory with the files below `name`, as further names of the same files. They stay where they are.

    Args:
        output_dir: Where links to the files can be made.
        source: The directory that the paths are in.
    """
    directory = tempfile.mkdtemp(prefix=PREFIX, dir=output_dir)
    try:
        if _link_all(source, paths, f"{directory}/{name}"):
            # Their owner may write to them again, in a later attempt at the same step.
            yield Presented(directory, is_ours=False)
            return
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    with staging_directory() as directory:
        for path in paths:
            shutil.copy2(f"{source}/{path}", _made(f"{directory}/{name}/{path}"), follow_symlinks=False)
        yield Presented(directory, is_ours=True)


@contextlib.contextmanager
def moved(output_dir: str, source: str, paths: Sequence[str], name: str) -> Iterator[Presented]:
    """As `linked`, but the files are gone from `source` afterwards.

    Where the run lies on the file system that they are on they are moved, so nothing at all is copied.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(staging_directory())
        try:
            for path in paths:
                os.rename(f"{source}/{path}", _made(f"{directory}/{name}/{path}"))
            presented = Presented(directory, is_ours=True)
        except OSError as error:
            if error.errno != errno.EXDEV:  # which shows at the first file
                raise
            presented = stack.enter_context(linked(output_dir, source, paths, name))
        yield presented
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{source}/{path}")
    _remove_empty(source)


def _link_all(source: str, paths: Sequence[str], target: str) -> bool:
    """Whether the file system has links."""
    try:
        for path in paths:
            os.link(f"{source}/{path}", _made(f"{target}/{path}"), follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _made(path: str) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _remove_empty(directory: str) -> None:
    """Removes the directories in which nothing is left; the last rank's call removes the last one."""
    for parent, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(parent)
