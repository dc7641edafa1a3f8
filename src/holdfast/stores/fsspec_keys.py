r"""Keys as names in a file system of fsspec, and back.

A name stays as it is where every such file system can hold it. What some of them cannot, or take for something else (a pattern,
a query, a drive), is written as `%XX`: control characters, bytes that are no UTF-8, `* ? [ ] { } # : ; \ " ' < > |`, and a dot or
space at the end of a name.
"""

from __future__ import annotations

import re

from holdfast.errors import StorageError
from holdfast.stores.percent import code, decode

_ODD = r"*?[]{}#:;\"'<>|"
_CODES = "|".join(f"{ord(char):02X}" for char in "\\ .%" + _ODD)
_CODED = rf"0[0-9A-F]|1[0-9A-F]|7F|[89A-F][0-9A-F]|{_CODES}"
_MUST_CODE = re.compile(rf"[\x00-\x1f\x7f\udc80-\udcff\\{re.escape(_ODD)}]|[. ](?=/|$)|%(?={_CODED})")
_IS_CODED = re.compile(rf"%({_CODED})")


def name_of(key: str) -> str:
    """The name for a key, both relative to the same root.

    Raises:
        StorageError: The key leads out of the root.
    """
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(f"The key {key!r} is no name that a store can hold: it has empty parts, '.' or '..'")
    return _MUST_CODE.sub(code, key)


def key_of(name: str) -> str:
    """The key for a name."""
    return _IS_CODED.sub(decode, name)
