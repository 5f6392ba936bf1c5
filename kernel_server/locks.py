"""Lock files: whoever owns a thing holds its lock, and the kernel lets go of it when that process dies (flock(2))."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def claimed(path: Path) -> Iterator[IO[str]]:
    """Takes over the lock of an owner who is gone, for the length of the block.

    Raises:
        BlockingIOError: the owner lives.
        OSError: there is no such lock, or it is another user's.
    """
    with path.open("r+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
