"""Copies of single files: shared with the original where the file system can, else with its holes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
from contextlib import suppress

from .trees import BLOCK

FICLONE = 0x40049409  # ioctl_ficlone(2)
SYNC_WAIT_BEFORE, SYNC_WRITE = 1, 2  # sync_file_range(2)
AT_ONCE = 1 << 20  # bytes that are read at once where the kernel does not copy
READ_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
MAKE_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def start_writeback(file: int) -> None:
    """From now on what is written through a mapping changes the file's ctime.

    Only a clean page tells when it is written to; one that was on its way to the disk may be dirty again, so that is
    waited for. A file on tmpfs is never written back: there, such writes stay unseen.
    """
    if _sync_file_range(file, 0, 0, SYNC_WAIT_BEFORE | SYNC_WRITE):
        os.fdatasync(file)


def share(source: int, target: int) -> bool:
    """Makes a file the same as another without copying it: False if the file system cannot."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return False
    return True


def can_share(folder: str) -> bool:
    """Whether files on the file system of a folder can share what they hold."""
    paths = [f"{folder}/{secrets.token_hex(8)}" for _ in range(2)]
    files = []
    try:
        files = [os.open(path, MAKE_FILE, 0o600) for path in paths]
        os.write(files[0], bytes(BLOCK))
        return share(files[0], files[1])
    finally:
        for file in files:
            os.close(file)
        for path in paths:
            with suppress(FileNotFoundError):
                os.unlink(path)


def copy(source: int, target: int) -> int:
    """Fills an empty file; returns how many bytes that took, 0 if they are shared."""
    status = os.fstat(source)
    if not status.st_size or share(source, target):
        return 0
    if status.st_blocks * BLOCK >= status.st_size:
        return _copy_range(source, target, 0, status.st_size)
    os.ftruncate(target, status.st_size)
    copied = end = 0
    while end < status.st_size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        copied += _copy_range(source, target, start, end)
    return copied


def _copy_range(source: int, target: int, start: int, end: int) -> int:
    position = start
    while position < end:
        try:
            done = os.copy_file_range(source, target, end - position, position, position)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
            done = 0
        done = done or os.pwrite(target, os.pread(source, min(end - position, AT_ONCE), position), position)
        if not done:
            break
        position += done
    return position - start
