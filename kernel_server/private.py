"""Folders and files that no other user of this machine can have put there, or can change: opened, then judged.

Names lead to what somebody else may have swapped a moment later, so everything is looked at by its descriptor, and
reached from there. It refuses to know what is in them.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOREIGN = "belongs to another user"
OPEN = "can be written by other users"
# What a file is called until it is whole. Nobody reads names that begin like this.
UNFINISHED = ".new-"


@contextmanager
def private_folder(path: str | Path, *, folder: int | None = None, make: bool = False) -> Iterator[int]:
    """A descriptor of a folder, for the length of the block.

    Args:
        folder: descriptor of the one that `path` lies in.
        make: makes it where it is missing, and those above it.

    Raises:
        OSError: it is missing, a link, another user's, or others may write to it.
    """
    if make:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        _check(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def open_private(name: str, folder: int, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file in a folder; the caller closes it. It is made 0600 where `flags` say so.

    Raises:
        OSError: it is missing, no regular file, another user's, or others may write to it.
    """
    # O_NONBLOCK: a fifo that somebody has put there is refused, not waited for.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", name)
        _check(descriptor, name)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_private(name: str, folder: int) -> bytes:
    """All of a regular file in a folder.

    Raises:
        OSError: as `open_private`.
    """
    with open(open_private(name, folder), "rb") as file:
        return file.read()


def write_private(name: str, folder: int, data: bytes) -> None:
    """Writes a file, 0600, whole or not at all, also for who reads it meanwhile.

    Raises:
        OSError: the disk is full, for one; what was there before still is.
    """
    unfinished = f"{UNFINISHED}{secrets.token_hex(8)}"
    with open(open_private(unfinished, folder, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.rename(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=folder)
            raise


def _check(descriptor: int, path: str | Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, FOREIGN, str(path))
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, OPEN, str(path))
