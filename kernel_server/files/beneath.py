"""Opening names beneath a folder of the host: openat2(2), with a fallback for older kernels."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_server.errors import FileError

SYS_OPENAT2 = 437  # the same on every architecture
# Links that stay beneath the folder are followed: the user made them. Links out of it are refused by the kernel.
RESOLVE = 0x02 | 0x08  # RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH
# A link with `..` in it cannot be judged while anything on the machine is renamed: openat2(2), EAGAIN.
MOST_TRIES = 1000


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


@contextmanager
def opened_folder(path: Path, variable: str) -> Iterator[int]:
    """A descriptor of WORKDIR_IN or WORKDIR_OUT.

    Raises:
        FileError: it is missing, a file, or not accessible.
    """
    try:
        descriptor = os.open(path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reasons = {
            errno.ENOENT: "does not exist; create it",
            errno.ENOTDIR: "is a file, not a folder",
            errno.EACCES: "may not be read by the server's user",
        }
        reason = reasons.get(error.errno or 0, f"cannot be opened ({error.strerror}); try again")
        raise FileError(
            f"{variable}, the folder {str(path)!r}, {reason}, or start the server with another one."
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_beneath(folder: int, path: str, flags: int) -> int:
    """Opens `path` beneath the open `folder`; the caller closes it.

    Raises:
        OSError: EXDEV if it leaves the folder, else as open(2).
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0o666 if flags & os.O_CREAT else 0, RESOLVE)
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "syscall") and os.uname().sysname == "Linux":
        for _ in range(MOST_TRIES):
            descriptor = libc.syscall(SYS_OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
            if descriptor >= 0:
                return int(descriptor)
            code = ctypes.get_errno()
            if code != errno.EAGAIN:
                break
        if code not in (errno.ENOSYS, errno.EPERM):
            raise OSError(code, os.strerror(code), path)
    return _open_by_steps(folder, path, flags)


def _open_by_steps(folder: int, path: str, flags: int) -> int:
    """The same without openat2; stricter, since no link at all is followed."""
    current = os.dup(folder)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    try:
        for part in parts[:-1]:
            following = os.open(part, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_RDONLY, dir_fd=current)
            os.close(current)
            current = following
        return os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=current)
    finally:
        os.close(current)


def kind_of(mode: int) -> str:
    """`a file`, `a folder`, `a fifo` …, for messages."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a fifo",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
