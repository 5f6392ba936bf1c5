"""The process that decodes pictures of sessions: it answers which are sound, and can do nothing else.

It knows no session, opens no file, and gets bytes by one socket, its standard input: a byte for the type, the length
as four bytes, then the picture. It answers each with one byte. See `decoding.py`, which starts it.
"""

from __future__ import annotations

import io
import os
import resource
import time
from contextlib import suppress

# What a picture may need is imported before limits are set: afterwards no file can be opened.
from PIL import Image, ImageFile, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin

from kernel_server.tools.decoding import BROKEN, HEADER, IMAGE_TYPES, READY, SOUND
from kernel_server.tools.formats import MAX_SIDE, has_all_pixels, size_of

MAX_BYTES = 1 << 20
MEMORY_BYTES = 256 << 20  # of addresses; the largest picture takes about 40 MB
CPU_SECONDS = 2  # for one picture; the largest takes a tenth of a second
NOBODY = 65534
PLUGINS = (JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin)


def main() -> None:
    """Answers until the other end is closed."""
    _warm_up()
    _give_up_rights()
    os.write(0, READY)
    while header := _read(HEADER.size):
        kind, length = HEADER.unpack(header)
        if length > MAX_BYTES:
            return
        data = _read(length)
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + CPU_SECONDS, resource.RLIM_INFINITY)
        os.write(0, SOUND if is_sound(IMAGE_TYPES[kind], data) else BROKEN)


def is_sound(mime_type: str, data: bytes) -> bool:
    """Whether every pixel is there, for our own reading of the format and for Pillow's."""
    try:
        size = size_of(mime_type, data)
        if size is None or max(size) > MAX_SIDE or (mime_type == "image/png" and not has_all_pixels(data)):
            return False
        with Image.open(io.BytesIO(data), formats=[mime_type.removeprefix("image/").upper()]) as image:
            image.load()
            return bool(image.size == size)
    except Exception:  # Pillow raises whatever its readers meet, MemoryError included
        return False


def _read(count: int) -> bytes:
    """So many bytes; none if there are no more."""
    data = bytearray()
    while len(data) < count:
        part = os.read(0, count - len(data))
        if not part:
            return b""
        data += part
    return bytes(data)


def _warm_up() -> None:
    """Loads what Pillow loads at its first picture, sound or broken."""
    Image.preinit()
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    for kind in IMAGE_TYPES:
        made = io.BytesIO()
        Image.new("RGB", (8, 8)).save(made, kind.removeprefix("image/").upper())
        is_sound(kind, made.getvalue())
        is_sound(kind, made.getvalue()[:-20] + made.getvalue()[-12:])


def _give_up_rights() -> None:
    """No files, no processes, little memory; and no rights of root, where the server has them."""
    if os.geteuid() == 0:
        with suppress(OSError):  # a root that is none, in a container of its own
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _limit(kind, limit, limit)


def _limit(kind: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(kind, (soft, hard))
    except (OSError, ValueError):  # a system or a user whose own limits are lower, or without this one
        return
