"""Byte streams between iterators and file objects."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 1 << 20


class IteratorReader(io.RawIOBase):
    """A file object over an iterator of bytes that can be read and moved forward only; holds one chunk at a time."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        """True, as io.RawIOBase wants to know."""
        return True

    def seekable(self) -> bool:
        """Forward at least."""
        return True

    def tell(self) -> int:
        """Bytes consumed so far."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Passes over what lies between here and `offset`.

        Raises:
            io.UnsupportedOperation: `offset` lies behind, or counts from somewhere else than the start.
        """
        if whence != os.SEEK_SET or offset < self._position:
            raise io.UnsupportedOperation("a stream goes forward only")
        while self._position < offset and self._take(offset - self._position):
            pass
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills `buffer` as far as the present chunk goes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        taken = self._take(len(view))
        view[: len(taken)] = taken
        return len(taken)

    def read(self, size: int = -1, /) -> bytes:
        """Exactly `size` bytes, or what is left of them at the end; tarfile takes a short answer for the end."""
        parts = []
        while size != 0 and (taken := self._take(size if size > 0 else CHUNK_BYTES)):
            parts.append(taken)
            size -= len(taken) if size > 0 else 0
        return b"".join(parts)

    def pour(self, descriptor: int, size: int) -> int:
        """Writes the next `size` bytes to a file descriptor without copying them; returns how many there were."""
        left = size
        while left and (taken := self._take(left)):
            left -= len(taken)
            while taken:
                taken = taken[os.write(descriptor, taken) :]
        return size - left

    def _take(self, size: int) -> memoryview:
        if not self._chunk:
            self._chunk = memoryview(next(self._chunks, b""))
        taken, self._chunk = self._chunk[:size], self._chunk[size:]
        self._position += len(taken)
        return taken
