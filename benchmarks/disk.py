"""A file system as users have it, whatever the machine's own is."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.process import JobError

_SIZE_BYTES = 4 << 30


@contextmanager
def fresh_ext4() -> Iterator[Path]:
    """The top of a new ext4 with mkfs's defaults, a journal included, mounted from a file and gone afterwards.

    The disks of many virtual machines have none. Without one ext4 does not reuse an inode for minutes after its deletion, and each
    creation of a file walks over all such inodes (`recently_deleted` in fs/ext4/ialloc.c): after some thousand deletions
    creating a file costs up to a millisecond, and how much differs tenfold with what ran before.

    Raises:
        JobError: It cannot be made here; that takes root.
    """
    top = Path(tempfile.mkdtemp(prefix="hfd-"))
    image, path = top / "image", top / "m"
    try:
        path.mkdir()
        with image.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        _run("mkfs.ext4", "-q", "-F", str(image))
        _run("mount", "-o", "loop", str(image), str(path))
        try:
            yield path
        finally:
            _run("umount", "-l", str(path))
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise JobError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise JobError(f"{' '.join(command)} failed (it takes root): {error.stderr.strip()}") from error
