"""Text that a message can carry."""

from __future__ import annotations


def sendable(text: str) -> str:
    """With escapes for lone surrogates, such as stand for bytes in names of files; runs no code of the session."""
    return str.encode(text, "utf-8", "backslashreplace").decode()
