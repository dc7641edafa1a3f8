r"""Keys as names in a file system of fsspec, and back.

A name stays as it is where every such file system can hold it. What some of them cannot, or take for something else (a pattern,
a query, a drive), is written as `%XX`: control characters, bytes that are no UTF-8, `* ? [ ] { } # : ; \ " ' < > |`, and a dot or
space at the end of a name. Where the client takes `%XX` for what a URL means by it, `%` is such a character itself, and another
one stands in its place.
"""

from __future__ import annotations

import functools
import re

from holdfast.errors import StorageError
from holdfast.stores.percent import code, decode

_ODD = r"*?[]{}#:;\"'<>|"


def name_of(key: str, escape: str = "%") -> str:
    """The name for a key, both relative to the same root.

    Args:
        escape: What stands before the two digits.

    Raises:
        StorageError: The key leads out of the root.
    """
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(f"The key {key!r} is no name that a store can hold: it has empty parts, '.' or '..'")
    return _patterns(escape)[0].sub(lambda found: code(found, escape), key)


def key_of(name: str, escape: str = "%") -> str:
    """The key for a name."""
    return _patterns(escape)[1].sub(decode, name)


@functools.cache
def _patterns(escape: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What is to be coded, and what is."""
    odd = _ODD if escape == "%" else f"{_ODD}%"
    codes = "|".join(f"{ord(char):02X}" for char in f"\\ .{escape}{odd}")
    coded = rf"0[0-9A-F]|1[0-9A-F]|7F|[89A-F][0-9A-F]|{codes}"
    must = rf"[\x00-\x1f\x7f\udc80-\udcff\\{re.escape(odd)}]|[. ](?=/|$)|{escape}(?={coded})"
    return re.compile(must), re.compile(f"{escape}({coded})")
