r"""Names of objects for keys: an object store takes UTF-8 without control characters, a file system any bytes.

What one of the stores cannot take is written as `%XX`, and a `%` only where it could be mistaken for that; so nearly every name
is the same in both, and other tools find a file under the name that it was reported with. Azure reads `\` as `/`, and its manual
warns of parts that end with a dot.
"""

from __future__ import annotations

import re

from holdfast.errors import StorageError
from holdfast.stores.percent import code, decode

# The longest name in bytes: S3 and Google Cloud have this limit, Azure one of 1,024 characters.
_LONGEST_BYTES = 1024
_CODED = r"0[0-9A-F]|1[0-9A-F]|7F|[89A-F][0-9A-F]|25|2E|5C"
_MUST_CODE = re.compile(rf"[\x00-\x1f\x7f\udc80-\udcff\\]|\.(?=/|$)|%(?={_CODED})")
_IS_CODED = re.compile(rf"%({_CODED})")


def name_of(prefix: str, key: str) -> str:
    """The object's name for a key below a prefix (itself a name).

    Raises:
        StorageError: The key leads out of the prefix, or is too long.
    """
    if not key:
        return prefix
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise StorageError(f"The key {key!r} is no name that an object store can hold: it has empty parts, '.' or '..'")
    name = _MUST_CODE.sub(code, key)
    name = f"{prefix}/{name}" if prefix else name
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_BYTES:
        raise StorageError(
            f"The name {key[:80]!r}… is longer than the {_LONGEST_BYTES} bytes that object stores take; use shorter names"
        )
    return name


def key_of(prefix: str, name: str) -> str:
    """The key below a prefix for an object's name."""
    key = name[len(prefix) + 1 :] if prefix else name
    if "%" not in key:
        return key
    return _IS_CODED.sub(decode, key)
