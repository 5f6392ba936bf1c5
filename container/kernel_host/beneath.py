"""Opening names beneath a folder that a session can change at any moment: openat2(2), never through a link."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import suppress

SYS_OPENAT2 = 437  # the same on every architecture
RESOLVE = 0x02 | 0x04 | 0x08  # RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH, openat2(2)

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The operation cannot be done; the message is for the model."""


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_beneath(root: int, path: str, flags: int) -> int:
    """Opens `path` beneath the open folder `root` without following any link; the caller closes it.

    Raises:
        Refused: it is missing, leaves the folder, or goes through a link.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE)
    descriptor = _libc.syscall(SYS_OPENAT2, root, os.fsencode(path or "."), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor >= 0:
        return int(descriptor)
    code = ctypes.get_errno()
    if code == errno.ENOSYS:
        return _open_by_steps(root, path, flags)
    raise refused(code, path)


def _open_by_steps(root: int, path: str, flags: int) -> int:
    """The same for kernels before 5.6: each folder on the way is opened by itself, never through a link."""
    current = os.dup(root)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    try:
        if ".." in parts:
            raise refused(errno.EXDEV, path)
        for part in parts[:-1]:
            following = os.open(part, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_RDONLY, dir_fd=current)
            os.close(current)
            current = following
        return os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    except OSError as error:
        raise refused(error.errno or 0, path) from error
    finally:
        os.close(current)


def refused(code: int, path: str) -> Refused:
    reasons = {
        errno.ENOENT: "there is no such file or folder in the workspace",
        errno.ELOOP: "it is, or goes through, a symbolic link; use the path that the link points to",
        errno.EXDEV: "it leaves the workspace",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EACCES: "the session may not access it",
        errno.ENOSPC: "the disk of the workspaces is full; remove files that are no longer needed",
        errno.EDQUOT: "the disk of the workspaces is full; remove files that are no longer needed",
        errno.ENAMETOOLONG: "the name is longer than 255 bytes",
        errno.ENXIO: "it is not a regular file",
        errno.EFBIG: "it is larger than the session's file size limit",
    }
    return Refused(f"{path or '.'}: {reasons.get(code, os.strerror(code))}")


def kind_name(mode: int) -> str:
    names = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a symbolic link"}
    return names.get(stat.S_IFMT(mode), "a device")


def mode_of(folder: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def make_folders(root: int, path: str) -> int:
    """Opens the folder `path`, made as needed; the caller closes it."""
    current = os.dup(root)
    try:
        for part in [part for part in path.split("/") if part not in ("", ".")]:
            try:
                following = open_beneath(current, part, os.O_DIRECTORY | os.O_RDONLY)
            except Refused:
                if part == ".." or mode_of(current, part) is not None:
                    raise
                with suppress(FileExistsError):  # the session has just made something; what it is, is seen next
                    os.mkdir(part, 0o755, dir_fd=current)
                following = open_beneath(current, part, os.O_DIRECTORY | os.O_RDONLY)
            os.close(current)
            current = following
    except OSError as error:
        os.close(current)
        raise refused(error.errno or 0, path) from error
    except BaseException:
        os.close(current)
        raise
    return current


class Folder:
    """An open folder, never reached through a link."""

    def __init__(self, parent: int, name: str) -> None:
        self._descriptor = open_beneath(parent, name, os.O_DIRECTORY | os.O_RDONLY)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)
