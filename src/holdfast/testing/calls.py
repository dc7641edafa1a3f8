"""What tests of stores call: a file put, an error expected, a hasher that tells what it was fed with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.stores.base import Store

NAMES = (
    "plain", "with space", "with\nnewline", "ünïcödé", os.fsdecode(b"not-utf8-\xff\xfe"), "a%41", "100%", "%0A", "deep/er/file",
    "~[a]{b}#c?d*e+f&g=h:i;j,k@l$m!n\\o'p\"q", "..a", "a.",
)  # fmt: skip


class Recorder:
    """A hasher that keeps what it is fed with."""

    def __init__(self) -> None:
        self.data = bytearray()

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Keeps the bytes."""
        self.data += data


def put(
    store: Store,
    key: str,
    tmp_path: Path,
    data: bytes | None,
    *,
    source: Path | None = None,
    size_bytes: int | None = None,
    mode: int = 0o644,
    hasher: Any = None,
) -> None:
    """Puts bytes, or a file, by `put_file`."""
    if source is None:
        source = tmp_path / "source-of-put"
        source.write_bytes(data or b"")
    descriptor = os.open(source, os.O_RDONLY)
    try:
        size_bytes = os.fstat(descriptor).st_size if size_bytes is None else size_bytes
        store.put_file(key, descriptor, size_bytes=size_bytes, mode=mode, hasher=hasher)
    finally:
        os.close(descriptor)


def expect(kind: type[BaseException], call: Callable[[], object]) -> BaseException:
    """Fails unless the call raises that error, which it returns."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")
