"""A file of a session in memory: out of its tar stream, as text or bytes, and of which type it is."""

from __future__ import annotations

import functools
import mimetypes
import os
from collections.abc import Iterator

from kernel_server.errors import FileError
from kernel_server.files.members import members
from kernel_server.streams import IteratorReader

BYTES_TYPE = "application/octet-stream"
TEXT_TYPE = "text/plain"
# Types of text that do not say so by `text/`, `+json` or `+xml`: RFC 8259, RFC 7303, RFC 9239.
TEXT_TYPES = {"application/json", "application/xml", "application/javascript"}
MORE_TYPES = {"text/markdown": ".md", "application/x-ipynb+json": ".ipynb"}  # not in every Python's table
BROKEN = "The file broke off on its way out of the container. Try again."
FRAME_BYTES = 64 << 10  # headers and padding of a tar with one file


def read_item(chunks: Iterator[bytes], size: int) -> bytes:
    """The contents of the one file in a tar stream; no more than `size` bytes are ever kept.

    Args:
        size: bytes that were announced.

    Raises:
        FileError: the stream is not what it should be.
    """
    stream = IteratorReader(_bounded(chunks, size + FRAME_BYTES))
    member = next(members(stream, BROKEN), None)
    if member is None or not member.isreg() or member.issparse() or member.size != size:
        raise FileError("The container sent something else than it had announced. Try again.")
    try:
        data = stream.read(size)
    except OSError as error:
        raise FileError(BROKEN) from error
    if len(data) != size:
        raise FileError(BROKEN)
    return data


def _bounded(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    for chunk in chunks:
        limit -= len(chunk)
        if limit < 0:
            raise FileError("The container sent more than it had announced. Try again.")
        yield chunk


def text_or_bytes(data: bytes) -> str | bytes:
    """Text if it is UTF-8 without NUL, which no text file holds; else the bytes."""
    if b"\0" in data:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def mime_type(name: str, content: str | bytes) -> str:
    """The type of a file by the end of its name, as far as that agrees with the content."""
    guess = _guess("file" + os.path.splitext(name)[1])
    if isinstance(content, bytes):
        return guess or BYTES_TYPE
    is_text = guess.startswith("text/") or guess.endswith(("+json", "+xml")) or guess in TEXT_TYPES
    return guess if is_text else TEXT_TYPE


def _guess(name: str) -> str:
    """The type of a name; "" if it is not known.

    `name` must come without what precedes its end: guess_type takes a whole name for a URL, `data:` included.
    """
    guess, encoding = _types().guess_type(name)
    if encoding:
        return "application/gzip" if encoding == "gzip" else BYTES_TYPE
    return guess or ""


@functools.cache
def _types() -> mimetypes.MimeTypes:
    """Python's own table: that of the machine differs from one to the next."""
    types = mimetypes.MimeTypes()
    for mime_type_, suffix in MORE_TYPES.items():
        types.add_type(mime_type_, suffix)
    return types
