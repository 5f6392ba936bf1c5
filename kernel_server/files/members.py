"""The members of a tar stream out of a container, as far as tarfile reads them: headers only, nothing is unpacked by it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from typing import IO, cast

from kernel_server.errors import FileError, KernelServerError
from kernel_server.streams import IteratorReader

# Of one member, with the extended headers before it, whose size a stream can name as it likes. A path takes 8 KB twice.
MAX_HEADER_BYTES = 256 << 10


class _Headers(io.RawIOBase):
    """What tarfile reads of a stream: headers. It passes over contents by `seek`."""

    def __init__(self, stream: IteratorReader) -> None:
        self.left = MAX_HEADER_BYTES
        self._stream = stream

    def tell(self) -> int:
        """Where the stream stands."""
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves forward."""
        return self._stream.seek(offset, whence)

    def read(self, size: int = -1, /) -> bytes:
        """As IteratorReader, as long as it is little: tarfile takes any size that a header names into memory."""
        if not 0 <= size <= self.left:
            raise FileError("The container sent headers that are too long. Nothing was written. Try again.")
        self.left -= size
        return self._stream.read(size)


def members(stream: IteratorReader, broken: str) -> Iterator[tarfile.TarInfo]:
    """Reads headers where the stream stands and moves forward; mode "r|" would copy every byte three times.

    Args:
        broken: what to tell if it is no tar.

    Raises:
        FileError: it is no tar, ends too early, or has headers of more than MAX_HEADER_BYTES for one member.
    """
    headers = _Headers(stream)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", headers), mode="r:") as archive:
            while (member := archive.next()) is not None:
                # tarfile keeps all members, and the global headers of all.
                vars(archive)["members"].clear()
                archive.pax_headers = {}
                yield member
                headers.left = MAX_HEADER_BYTES
    except KernelServerError:
        raise
    except Exception as error:  # a stream can make tarfile raise any: RecursionError, ValueError, OverflowError, …
        raise FileError(broken) from error
