"""Which picture of a MIME bundle a client gets: none that is not surely sound, and no more than a result can hold.

Some models refuse a whole conversation for one broken image, so what cannot be decoded is not sent. What is too large
was made smaller in the kernel, see `container/kernel_host/pictures.py`.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import dataclass

from mcp.types import ImageContent

from kernel_server.kernels.outputs import Display
from kernel_server.kernels.previews import Preview
from kernel_server.text import human_size
from kernel_server.tools.decoding import CHECK_SECONDS, IMAGE_TYPES, Verdict
from kernel_server.tools.formats import MAX_SIDE, size_of

# Of all images of one result: Claude Desktop refuses more than 1 MB, text included.
MAX_IMAGES_BASE64 = 700_000
MAX_SECONDS = 6.0  # that the pictures of one result are decoded for
SMALLER_HINT = "Make it smaller, for example with plt.figure(dpi=72), or save it to a file and use cp_out"

Check = Callable[[str, bytes, float], Verdict]


@dataclass(frozen=True)
class Shown:
    """What is shown of a picture.

    Attributes:
        image: what is sent, None if the picture is left out.
        note: what has to be said about it, "" for nothing.
    """

    image: ImageContent | None
    note: str = ""


@dataclass(frozen=True)
class _Image:
    """An image that is sound as far as its structure goes; `data` is base64."""

    mime_type: str
    data: str
    width: int
    height: int

    def fits(self, room: int) -> bool:
        return len(self.data) <= room and max(self.width, self.height) <= MAX_SIDE

    @property
    def decoded(self) -> bytes:
        return base64.b64decode(self.data)


class Gallery:
    """The pictures of one result.

    Attributes:
        downscaled, left_out: how many of them were sent as a preview, or not at all.
    """

    def __init__(self, check: Check, *, session_kept: bool) -> None:
        """`session_kept`: the session lives on, so that files of its workspace can be had; `check` as `Decoder.check`."""
        self.downscaled = self.left_out = 0
        self._check = check
        self._room = MAX_IMAGES_BASE64
        self._deadline = time.monotonic() + MAX_SECONDS
        self._session_kept = session_kept

    def show(self, display: Display) -> Shown | None:
        """Decides about the picture of a bundle; None if it has none that is sound.

        Takes at most MAX_SECONDS for all pictures together; blocks for as long.
        """
        about = display.preview or Preview()
        verdicts: set[Verdict] = set()
        preview = _read(about.mime_type, about.data)
        if preview and preview.fits(self._room) and self._is_sound(preview, verdicts):
            self.downscaled += 1
            return self._sent(preview, _about_preview(preview, about, self._session_kept))
        images = [image for kind in IMAGE_TYPES if (image := _read(kind, display.data.get(kind)))]
        for image in images:
            if image.fits(self._room) and self._is_sound(image, verdicts):
                return self._sent(image)
        if "unknown" in verdicts:
            self.left_out += 1
            return Shown(None, _about_unchecked(about, self._session_kept))
        too_large = [image for image in images if not image.fits(self._room)]
        if not too_large and not about.original:
            return None
        self.left_out += 1
        if "broken" in verdicts and not too_large:
            return Shown(None, _about_broken(about, self._session_kept))
        return Shown(None, _about_missing(too_large[0] if too_large else None, about, self._session_kept))

    def _is_sound(self, image: _Image, verdicts: set[Verdict]) -> bool:
        seconds = min(CHECK_SECONDS, self._deadline - time.monotonic())
        verdict = self._check(image.mime_type, image.decoded, seconds) if seconds > 0 else "unknown"
        verdicts.add(verdict)
        return verdict == "sound"

    def _sent(self, image: _Image, note: str = "") -> Shown:
        self._room -= len(image.data)
        return Shown(ImageContent(type="image", data=image.data, mime_type=image.mime_type), note)


def _about_preview(preview: _Image, about: Preview, session_kept: bool) -> str:
    where = about.original if about.original and session_kept else "the notebook (export_notebook)"
    if (preview.width, preview.height) == (about.width, about.height):
        return f"[image shown re-encoded; the original is in {where}]"
    size = f" {about.width}x{about.height}" if about.width and about.height else ""
    return f"[image shown at {preview.width}x{preview.height}; the original{size} is in {where}]"


def _about_missing(image: _Image | None, about: Preview, session_kept: bool) -> str:
    size = f"{about.width}x{about.height}"
    if image:
        size = f"{image.width}x{image.height} ({human_size(len(image.data) * 3 // 4)})"
    if about.original and session_kept:
        how = f"It is in {about.original}: show it alone with display(Image(...)), or copy it with cp_out"
    else:
        how = f"{SMALLER_HINT}; export_notebook holds it too"
    return f"[an image of {size} was left out: too much for one result. {how}]"


def _about_unchecked(about: Preview, session_kept: bool) -> str:
    return f"[an image was left out: it could not be checked in time. {_where(about, session_kept)}; display it again alone]"


def _about_broken(about: Preview, session_kept: bool) -> str:
    return f"[an image was left out: it could not be decoded. {_where(about, session_kept)}]"


def _where(about: Preview, session_kept: bool) -> str:
    if about.original and session_kept:
        return f"The original is in {about.original}"
    return "The notebook has it (export_notebook)"


def _read(mime_type: str, data: object) -> _Image | None:
    """The image if its base64 and its structure are those of its type; its pixels are not looked at."""
    if mime_type not in IMAGE_TYPES or not isinstance(data, str) or not data:
        return None
    compact = "".join(data.split())
    try:
        size = size_of(mime_type, base64.b64decode(compact, validate=True))
    except (binascii.Error, ValueError):
        return None
    return _Image(mime_type, compact, *size) if size else None
