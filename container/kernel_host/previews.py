"""Smaller pictures of large ones: pure functions over bytes. Pillow is imported only when one is needed."""

from __future__ import annotations

import base64
import io
import struct
import warnings
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 1500  # pixels; models see no more than that
SMALLEST_SIDE = 64  # below it nobody recognizes anything
JPEG_QUALITIES = (85, 60)
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}
SENDABLE = ("image/png", "image/jpeg")  # what every model takes


@dataclass(frozen=True)
class Picture:
    """An encoded picture; `width` and `height` are what its header says, in pixels."""

    mime_type: str
    encoded: bytes
    width: int
    height: int

    @property
    def base64_size(self) -> int:
        """How many characters it takes in a message."""
        return (len(self.encoded) + 2) // 3 * 4

    @property
    def sendable(self) -> bool:
        """Whether a model can be shown it as it is, if it is not too many bytes."""
        return self.mime_type in SENDABLE and max(self.width, self.height) <= MAX_SIDE

    @property
    def base64(self) -> str:
        """The bytes as a message has them."""
        return base64.b64encode(self.encoded).decode()


def picture_of(data: dict[str, Any]) -> Picture | None:
    """The picture in a MIME bundle, where it has one whose header can be read; bytes or base64."""
    for mime_type in EXTENSIONS:
        value = data.get(mime_type)
        if isinstance(value, bytes | str):
            encoded = value if isinstance(value, bytes) else base64.b64decode(value)
            size = _dimensions(mime_type, encoded)
            return Picture(mime_type, encoded, *size) if size else None
    return None


def _dimensions(mime_type: str, encoded: bytes) -> tuple[int, int] | None:
    if mime_type == "image/png":
        return _two_numbers(">II", encoded, 16) if encoded[12:16] == b"IHDR" else None
    if mime_type == "image/jpeg":
        return _jpeg_dimensions(encoded)
    image = _opened(encoded)
    with image:
        return image.size


def _jpeg_dimensions(encoded: bytes) -> tuple[int, int] | None:
    """From the frame header: ITU-T T.81, B.2.2."""
    position = 2
    while position + 9 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _two_numbers(">HH", encoded, position + 5)
            return width, height
        fill_byte = marker == 0xFF
        position += 1 if fill_byte else 2 + struct.unpack_from(">H", encoded, position + 2)[0]
    return None


def _two_numbers(kind: str, encoded: bytes, position: int) -> tuple[int, int]:
    first, second = struct.unpack_from(kind, encoded, position)
    return first, second


def smaller(picture: Picture, max_base64: int) -> Picture | None:
    """The picture with at most MAX_SIDE pixels on a side and `max_base64` characters; None if there is no Pillow.

    Raises:
        Exception: whatever Pillow raises for bytes that are no picture.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        return None
    opened = _opened(picture.encoded)
    with opened:
        image = _flat(_shrunk(opened))
    photo = picture.mime_type == "image/jpeg" or _is_photo(image)
    side = max(image.size)
    while True:
        image.thumbnail((side, side))
        candidates = _encodings(image, photo)
        for candidate in candidates:
            if candidate.base64_size <= max_base64:
                return candidate
        least = min(candidate.base64_size for candidate in candidates)
        side = int(side * min(0.9, sqrt(max(max_base64, 0) / least)))
        if side < SMALLEST_SIDE:
            return None


def _opened(encoded: bytes) -> Image:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large picture is none of the session's faults
        return Image.open(io.BytesIO(encoded))


def _shrunk(image: Image) -> Image:
    """At most MAX_SIDE pixels on a side, upright, in a mode that can be scaled smoothly."""
    from PIL import Image, ImageOps

    if image.mode.startswith("I"):  # 16 bits of grey
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return ImageOps.exif_transpose(image)


def _flat(image: Image) -> Image:
    """Without transparency: what shows through is white, as in a notebook."""
    from PIL import Image

    if "A" not in image.getbands():
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _is_photo(image: Image) -> bool:
    """Whether JPEG suits it far better than PNG: its colours are too many for a palette, which would take seconds."""
    return _written(image, "PNG").base64_size > 4 * _written(image, "JPEG", quality=JPEG_QUALITIES[0]).base64_size


def _encodings(image: Image, photo: bool) -> list[Picture]:
    """Ways to write it, the best first."""
    from PIL import Image

    jpegs = [_written(image, "JPEG", quality=quality) for quality in JPEG_QUALITIES]
    if photo:
        return jpegs
    palette = image.quantize(256, dither=Image.Dither.NONE)
    return [_written(image, "PNG"), _written(palette, "PNG", optimize=True), *jpegs]


def _written(image: Image, kind: str, **options: Any) -> Picture:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Picture(f"image/{kind.lower()}", file.getvalue(), *image.size)
