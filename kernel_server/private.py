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

# What a file is called until it is whole. Nobody reads names that begin like this.
UNFINISHED = ".new-"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def private_folder(path: str | Path, *, make: bool = False) -> Iterator[int]:
    """A descriptor of a folder, for the length of the block.

    Args:
        make: makes it where it is missing, with those above it, and closes it to others where it is ours.

    Raises:
        OSError: it is missing, a link, another user's, or others may write to it.
    """
    descriptor = open_private_folder(path, make=make)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_private_folder(path: str | Path, *, make: bool = False) -> int:
    """As `private_folder`; the caller closes it."""
    if make:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if make and status.st_uid == os.geteuid() and status.st_mode & OTHERS_WRITE:
            os.fchmod(descriptor, 0o700)
        _check(descriptor, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def others_can_replace(folder: Path) -> bool:
    """Whether another user can put something in the place of what we make in a folder, or of the folder.

    Raises:
        OSError: there is no such folder.
    """
    trusted = {0, os.geteuid(), _overflow_uid()}
    real = folder.resolve(strict=True)
    for path in (real, *real.parents):
        status = os.stat(path)
        sticky = status.st_mode & stat.S_ISVTX
        if status.st_uid not in trusted or (status.st_mode & OTHERS_WRITE and not sticky):
            return True
    return False


def _overflow_uid() -> int:
    """Who owns what root owns outside, in a user namespace where that user is not mapped: user_namespaces(7)."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_bytes())
    except (OSError, ValueError):
        return 0


def open_private(name: str | Path, folder: int | None, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file in a folder; the caller closes it. It is made 0600 where `flags` say so.

    One of ours that is opened for writing is closed to others: earlier versions left the mode of locks to the umask.

    Raises:
        OSError: it is missing, no regular file, another user's, or others may write to it.
    """
    # O_NONBLOCK: a fifo that somebody has put there is refused, not waited for.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(name))
        if flags & (os.O_RDWR | os.O_WRONLY) and status.st_uid == os.geteuid() and status.st_mode & OTHERS_WRITE:
            os.fchmod(descriptor, 0o600)
        _check(descriptor, name)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_private(name: str | Path, folder: int | None = None) -> bytes:
    """All of a regular file.

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
        raise PermissionError(errno.EPERM, "belongs to another user", str(path))
    if status.st_mode & OTHERS_WRITE:
        raise PermissionError(errno.EPERM, "can be written by other users", str(path))
