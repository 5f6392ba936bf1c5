"""PNG and JPEG files, as strictly as a decoder could be: pure functions over bytes that come from sessions.

`size_of` reads the structure alone, and is fit for files of any size. `has_all_pixels` inflates a PNG, and is for a
process with limits; the pixels of a JPEG take a real decoder.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

MAX_SIDE = 1500  # pixels, of what is sent
MAX_PARTS = 5_000  # of a file; real ones have some dozens
MAX_SCANS = 50  # of a progressive JPEG, each of which costs as much as the whole picture; real ones have about ten
MAX_INFLATED = 1 << 20  # bytes of a text or a colour profile of a PNG
MAX_PALETTE = 256
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bits per pixel of each colour type and the bit depths that it may have: https://www.w3.org/TR/png-3/#11IHDR
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# First column and row of each pass of an interlaced PNG, and the steps: https://www.w3.org/TR/png-3/#8Interlace
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
WHOLE = ((0, 0, 1, 1),)
MAX_FILTER = 4
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
ANIMATED = (b"acTL", b"fcTL", b"fdAT")  # a person would see other pictures than a model
COMPRESSED = {b"iCCP": 1, b"zTXt": 1, b"iTXt": 3}  # how many texts that end with a zero come before what is compressed
# Baseline, extended and progressive frames, all with Huffman coding; few decoders know the others: ITU-T T.81, table B.1.
FRAMES = (0xC0, 0xC1, 0xC2)
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
COMPONENTS = (1, 3, 4)
BLOCK = 8  # pixels, of a side
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the first that ends the data of a scan

Chunk = tuple[bytes, bytes]


def size_of(mime_type: str, data: bytes) -> tuple[int, int] | None:
    """Width and height; None if the file is not of that type, has parts that no such file has, or more after its end."""
    try:
        size = (_png_size if mime_type == "image/png" else _jpeg_size)(data)
    except (ValueError, IndexError, struct.error):
        return None
    return size if size and min(size) > 0 else None


def has_all_pixels(data: bytes) -> bool:
    """Whether the pixels of a PNG are there to the last, and nothing else; for one that has a size.

    What is compressed is inflated as far as it is expected to go, and no further.
    """
    chunks = list(_chunks(data))
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    passes = list(_passes(width, height, depth * CHANNELS[colour], ADAM7 if interlaced else WHOLE))
    pixels = _inflated(b"".join(body for kind, body in chunks if kind == b"IDAT"), sum(n * row for n, row in passes))
    if pixels is None or len(pixels) != sum(count * row for count, row in passes):
        return False
    start = 0
    for count, row in passes:
        if max(pixels[start : start + count * row : row]) > MAX_FILTER:
            return False
        start += count * row
    return all(_is_bounded(kind, body) for kind, body in chunks if kind in COMPRESSED)


def _png_size(data: bytes) -> tuple[int, int] | None:
    """https://www.w3.org/TR/png-3/#5DataRep."""
    if not data.startswith(PNG_SIGNATURE):
        return None
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or kinds.count(b"IHDR") + kinds.count(b"IEND") != 2:
        return None
    if b"IDAT" not in kinds or any(kind in ANIMATED or not _is_known(kind) for kind in kinds):
        return None
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    if kinds[first : first + count] != [b"IDAT"] * count or chunks[-1][1]:
        return None
    width, height, depth, colour, compression, filtering, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth not in DEPTHS.get(colour, ()) or compression or filtering or interlaced > 1:
        return None
    palette = [body for kind, body in chunks[:first] if kind == b"PLTE"]
    return (width, height) if _fits_palette(kinds, palette, depth, colour) else None


def _chunks(data: bytes) -> Iterator[Chunk]:
    """All of a PNG, each with its checksum right.

    Raises:
        ValueError, struct.error: there are bytes that are in none, or too many chunks.
    """
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            raise ValueError("wrong checksum")
        yield kind, data[position + 8 : end]
        position = end + 4
        if position == len(data):
            return
    raise ValueError("too many chunks")


def _is_known(kind: bytes) -> bool:
    """Whether a decoder knows the chunk or may pass it over: its first letter is small, its third is not."""
    return kind in CRITICAL or (kind.isalpha() and kind[:1].islower() and kind[2:3].isupper())


def _fits_palette(kinds: list[bytes], before_pixels: list[bytes], depth: int, colour: int) -> bool:
    """Whether there is a palette where one has to be, and none where none may be."""
    if len(before_pixels) != kinds.count(b"PLTE") or len(before_pixels) > 1:
        return False
    if not before_pixels:
        return colour != 3
    most = 1 << depth if colour == 3 else MAX_PALETTE
    return colour in (2, 3, 6) and len(before_pixels[0]) in range(3, 3 * most + 1, 3)


def _passes(
    width: int, height: int, bits: int, steps: tuple[tuple[int, int, int, int], ...]
) -> Iterator[tuple[int, int]]:
    """Number of rows of each pass that has any, and how many bytes each of them has with its filter."""
    for left, top, across, down in steps:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            yield rows, 1 + (columns * bits + 7) // 8


def _inflated(data: bytes, most: int) -> bytes | None:
    """What was compressed; None if it is more than `most` bytes, damaged or incomplete, or has something after it."""
    inflating = zlib.decompressobj()
    try:
        inflated = inflating.decompress(data, most + 1)
    except zlib.error:
        return None
    return inflated if inflating.eof and not inflating.unused_data and len(inflated) <= most else None


def _is_bounded(kind: bytes, body: bytes) -> bool:
    """Whether a text or a colour profile is of its form, and inflates to no more than MAX_INFLATED."""
    if kind == b"iTXt":
        *_, rest = body.partition(b"\0")
        compressed, method, *_ = rest[:2]
        text = rest[2:].split(b"\0", 2)[2]
        return not compressed or (not method and _inflated(text, MAX_INFLATED) is not None)
    *_, rest = body.partition(b"\0")
    return rest[:1] == b"\0" and _inflated(rest[1:], MAX_INFLATED) is not None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """ITU-T T.81, annex B: a frame, scans, and the end of the image at the end of the data.

    Each block takes a bit at least; that much is asked for, since decoders make up what is missing.
    """
    size: tuple[int, int] | None = None
    position, scans, bits = 2, 0, 0
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    for _ in range(MAX_PARTS):
        start, marker = struct.unpack_from(">BB", data, position)
        if start != 0xFF or marker in OTHER_FRAMES:
            return None
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == END_OF_IMAGE:
            whole = size and bits >= -(-size[0] // BLOCK) * -(-size[1] // BLOCK) and position + 2 == len(data)
            return size if whole else None
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if size or precision != 8 or components not in COMPONENTS:
                return None
            size = width, height
        position += 2 + length
        if marker == START_OF_SCAN:
            scans += 1
            found = _MARKER.search(data, position)
            if not found or found.start() == position or scans > MAX_SCANS or not size:
                return None
            bits += 8 * (found.start() - position)
            position = found.start()
    return None
