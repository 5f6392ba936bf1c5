"""Pictures made by hand, and what their headers say: tests look at images without a library that decodes them."""

from __future__ import annotations

import base64
import struct
import zlib

from mcp.types import ImageContent

PNG = b"\x89PNG\r\n\x1a\n"
TINY_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////"
    "////////wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AN//Z"
)


def make_png(width: int, height: int) -> bytes:
    """A black one."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height))
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG."""
    assert data.startswith(PNG)
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def decoded(image: ImageContent) -> bytes:
    """The bytes of an image of a result."""
    return base64.b64decode(image.data, validate=True)
