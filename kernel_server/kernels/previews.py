"""What a kernel says of a picture that is too large for a result: a smaller one, and where the original is."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREVIEW_KEY = "kernel_server"  # in the metadata of a display
PREVIEW_TYPES = ("image/png", "image/jpeg")
MAX_PREVIEW_BASE64 = 700_000
_ORIGINAL = re.compile(r"images/[\w.-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class Preview:
    """A smaller picture that the kernel made of one which is too large for a result.

    Attributes:
        mime_type, data: the smaller one, `data` as base64; both "" if none could be made.
        original: where the original is in the workspace, "" if it was not saved.
        width, height: of the original in pixels, 0 if they are not known.
    """

    mime_type: str = ""
    data: str = ""
    original: str = ""
    width: int = 0
    height: int = 0


def preview_of(note: object) -> Preview | None:
    """What container/kernel_host/pictures.py puts into the metadata, or somebody who claims to be it."""
    if not isinstance(note, dict):
        return None
    made = note.get("preview")
    mime_type, data = (made.get("mime_type"), made.get("data")) if isinstance(made, dict) else ("", "")
    if mime_type not in PREVIEW_TYPES or not isinstance(data, str) or len(data) > MAX_PREVIEW_BASE64:
        mime_type, data = "", ""
    original = note.get("original")
    original = original if isinstance(original, str) and _ORIGINAL.fullmatch(original) else ""
    return Preview(mime_type, data, original, _pixels(note.get("width")), _pixels(note.get("height")))


def _pixels(value: object) -> int:
    return value if type(value) is int and 0 < value < 1 << 31 else 0
