"""Characters that a store cannot hold in a name, written as `%XX`, or with another sign, and back; a byte that is no UTF-8 is a surrogate."""

from __future__ import annotations

import re


def code(found: re.Match[str], escape: str = "%") -> str:
    """What a character is written as."""
    number = ord(found[0])
    return f"{escape}{number - 0xDC00 if number > 0xFF else number:02X}"


def decode(found: re.Match[str]) -> str:
    """The character that the two digits of the first group stand for."""
    number = int(found[1], 16)
    return chr(number + 0xDC00 if number >= 0x80 else number)
