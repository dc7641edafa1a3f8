"""File systems of fsspec that lie on this machine and are not taken for it; several processes may use one at once.

In a module of their own: a worker must be able to import the class of what is sent to it.
"""

from __future__ import annotations

import os
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem


class ElsewhereFileSystem(LocalFileSystem):
    """Can all that a local one can, under a name of its own."""

    protocol = "elsewhere"


class RefusingFileSystem(ElsewhereFileSystem):
    """Moves in one step, but never onto something, as HDFS does; and ignores the `x` of `xb`, as many do."""

    protocol = "refusing"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        os.link(path1, path2)
        os.unlink(path1)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(path, mode=mode.replace("x", "w"), **options)


class BareFileSystem(AbstractFileSystem):  # type: ignore[misc] # has no types
    """Has nothing but what fsspec requires: no move, no creation, and its directories remember what was listed once."""

    protocol = "bare"
    root_marker = "/"

    def __init__(self, secret: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._local = LocalFileSystem()
        self.secret = secret

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        if path not in self.dircache:
            self.dircache[path] = self._local.ls(path, detail=True)
        found = self.dircache[path]
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **_: Any) -> Any:
        return self._local.info(path)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self._local.mkdir(path, create_parents=create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._local.makedirs(path, exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        self._local.rmdir(path)

    def rm_file(self, path: str) -> None:
        self._local.rm_file(path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return open(path, mode.replace("x", "w"))


class BreakableFileSystem(BareFileSystem):
    """Holds a connection that can break, as clients of SFTP and FTP do: then this object is of no use any more."""

    protocol = "breakable"
    made = 0
    broken = 0

    def __init__(self, secret: str = "", **options: Any) -> None:
        super().__init__(secret, **options)
        type(self).made += 1
        self.number = type(self).made

    @classmethod
    def break_all(cls) -> None:
        """Every object that there is now has lost its connection."""
        cls.broken = cls.made

    def check(self) -> None:
        if self.number <= type(self).broken:
            raise OSError("Socket is closed")

    def info(self, path: str, **options: Any) -> Any:
        self.check()
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self.check()
        return super().ls(path, detail, **options)

    def rm_file(self, path: str) -> None:
        self.check()
        super().rm_file(path)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.check()
        return _BreakableFile(self, super()._open(path, mode, **options))


class _BreakableFile:
    def __init__(self, filesystem: BreakableFileSystem, file: Any) -> None:
        self._filesystem = filesystem
        self._file = file

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> Any:
        try:
            self._filesystem.check()
        except OSError:
            self._file.close()
            raise
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
