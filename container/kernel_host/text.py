"""Text that a message can carry."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C0, DEL and C1: ECMA-48, section 5


def sendable(text: str) -> str:
    """With escapes for lone surrogates, such as stand for bytes in names of files; runs no code of the session."""
    return str.encode(text, "utf-8", "backslashreplace").decode()


def has_controls(text: str) -> bool:
    """Whether a terminal would take a part of it for an order, line ends included."""
    return bool(_CONTROL.search(text))


def escaped(text: str) -> str:
    """As a person would type it in Python: control characters as escapes."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
