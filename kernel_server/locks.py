"""Lock files: whoever owns a thing holds its lock, and the kernel lets go of it when that process dies (flock(2))."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_server.private import open_private


@contextmanager
def claimed(path: str | Path, folder: int | None = None) -> Iterator[int]:
    """Takes over the lock of an owner who is gone, for the length of the block; gives its descriptor.

    Args:
        folder: descriptor of the folder that `path` is in.

    Raises:
        BlockingIOError: the owner lives.
        OSError: there is no such lock, or it is another user's.
    """
    lock = open_private(path, folder, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    finally:
        os.close(lock)
