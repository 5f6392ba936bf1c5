"""Which picture of a MIME bundle a client gets: checked as far as that goes without decoding one.

Some models refuse a whole conversation for one broken image, so what is not surely sound is not sent. What is too
large was made smaller in the kernel, see `container/kernel_host/pictures.py`.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass

from mcp.types import ImageContent

from kernel_server.kernels.outputs import Display
from kernel_server.kernels.previews import Preview
from kernel_server.text import human_size

# Of all images of one result: Claude Desktop refuses more than 1 MB, text included.
MAX_IMAGES_BASE64 = 700_000
MAX_SIDE = 1500  # pixels
IMAGE_TYPES = ("image/png", "image/jpeg")
MAX_PARTS = 5_000  # of a file; real ones have some dozens
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SMALLER_HINT = "Make it smaller, for example with plt.figure(dpi=72), or save it to a file and use cp_out"


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
    """An image that is sound as far as its frame goes; `data` is base64."""

    mime_type: str
    data: str
    width: int
    height: int

    def fits(self, room: int) -> bool:
        return len(self.data) <= room and max(self.width, self.height) <= MAX_SIDE


class Gallery:
    """The pictures of one result.

    Attributes:
        downscaled, left_out: how many of them were sent as a preview, or not at all.
    """

    def __init__(self, *, session_kept: bool) -> None:
        """`session_kept`: the session lives on, so that files of its workspace can be had."""
        self.downscaled = self.left_out = 0
        self._room = MAX_IMAGES_BASE64
        self._session_kept = session_kept

    def show(self, display: Display) -> Shown | None:
        """Decides about the picture of a bundle; None if it has none that is sound."""
        about = display.preview or Preview()
        preview = _checked(about.mime_type, about.data)
        if preview and preview.fits(self._room):
            self.downscaled += 1
            return self._sent(preview, _about_preview(preview, about, self._session_kept))
        sound = [image for kind in IMAGE_TYPES if (image := _checked(kind, display.data.get(kind)))]
        for image in sound:
            if image.fits(self._room):
                return self._sent(image)
        if not sound and not about.original:
            return None
        self.left_out += 1
        return Shown(None, _about_missing(sound[0] if sound else None, about, self._session_kept))

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


def _checked(mime_type: str, data: object) -> _Image | None:
    """The image if its base64, its signature and its structure are right; its pixels are not looked at."""
    if mime_type not in IMAGE_TYPES or not isinstance(data, str) or not data:
        return None
    compact = "".join(data.split())
    try:
        decoded = base64.b64decode(compact, validate=True)
        size = (_png_size if mime_type == "image/png" else _jpeg_size)(decoded)
    except (binascii.Error, ValueError, IndexError, struct.error):
        return None
    return _Image(mime_type, compact, *size) if size and min(size) > 0 else None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height, if every chunk up to the last is whole: https://www.w3.org/TR/png-3/#5DataRep."""
    if not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            return None
        if kind == b"IEND":
            return width, height
        position = end + 4
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height, if there are a frame, a scan and an end: ITU-T T.81, annex B."""
    size, position = None, 2
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    for _ in range(MAX_PARTS):
        start, marker, length = struct.unpack_from(">BBH", data, position)
        if start != 0xFF:
            return None
        if marker == 0xDA:
            return size if data.rfind(b"\xff\xd9") > position else None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = width, height
        fill_byte = marker == 0xFF
        position += 1 if fill_byte else 2 + length
    return None
