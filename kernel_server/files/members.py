"""The members of a tar stream out of a container, as far as tarfile reads them: headers only, nothing is unpacked by it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from kernel_server.errors import FileError, KernelServerError
from kernel_server.streams import IteratorReader


def members(stream: IteratorReader, broken: str) -> Iterator[tarfile.TarInfo]:
    """Reads headers where the stream stands and moves forward; mode "r|" would copy every byte three times.

    Args:
        broken: what to tell if it is no tar.

    Raises:
        FileError: it is no tar, or ends too early.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield from archive
    except KernelServerError:
        raise
    except Exception as error:  # a stream can make tarfile raise any: RecursionError, ValueError, OverflowError, …
        raise FileError(broken) from error
