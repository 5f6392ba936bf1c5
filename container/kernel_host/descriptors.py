"""What a process has open, and how what it has inherited is opened anew."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

NOT_KEPT = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY | os.O_NOATIME | (os.O_TMPFILE & ~os.O_DIRECTORY)


class Descriptor(NamedTuple):
    """An open descriptor; `key` is device and inode."""

    number: int
    target: str
    mode: int
    key: tuple[int, int]
    links: int
    flags: int

    @property
    def writable(self) -> bool:
        """Whether it can be written to."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY and not self.flags & os.O_PATH

    @property
    def readable(self) -> bool:
        """Whether it can be read."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY and not self.flags & os.O_PATH

    @property
    def path(self) -> str:
        """Where the file was opened, also if it has lost its name since."""
        return self.target if self.links else self.target.removesuffix(" (deleted)")


def keys() -> Iterator[tuple[int, int]]:
    """Device and inode of what is open."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one of this very list is closed
            status = os.fstat(int(name))
            yield status.st_dev, status.st_ino


def descriptors() -> Iterator[Descriptor]:
    """What is open."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one of this very list is closed
            number = int(name)
            status = os.fstat(number)
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
            target = os.readlink(f"/proc/self/fd/{name}")
            key = status.st_dev, status.st_ino
            yield Descriptor(number, target, status.st_mode, key, status.st_nlink, flags)


def beneath(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def reopen(old_roots: dict[str, str]) -> list[str]:
    """Opens what a forked process has inherited anew, so that its files and its places in them are its own.

    For the child, before the parent goes on: both move the same offset until then. Regular files and folders beneath
    an old folder are opened at the same path beneath the new one, with the same access and status flags, offset and
    FD_CLOEXEC; others where they are, if they are only read. Locks on files (flock(2), fcntl(2)) stay with the parent.

    Args:
        old_roots: new folders by old ones; both may be the same.

    Returns:
        The paths that could not be opened; what belongs there now reads and writes /dev/null.
    """
    roots = sorted(((os.path.realpath(old), new) for old, new in old_roots.items()), key=lambda root: -len(root[0]))
    missing = []
    for descriptor in list(descriptors()):
        if stat.S_ISREG(descriptor.mode) or stat.S_ISDIR(descriptor.mode):
            path = _moved(descriptor.path, roots)
            if path is None and descriptor.readable and not descriptor.writable:
                path = f"/proc/self/fd/{descriptor.number}"  # proc(5): the file itself, also without a name
            if path is not None and not _open_anew(descriptor, path):
                missing.append(_moved(descriptor.path, roots) or descriptor.path)
    return missing


def _moved(path: str, roots: list[tuple[str, str]]) -> str | None:
    """Where a path is now: the innermost folder counts, which comes first."""
    return next((new + path[len(old) :] for old, new in roots if beneath(path, old)), None)


def _open_anew(descriptor: Descriptor, path: str) -> bool:
    number = descriptor.number
    flags = descriptor.flags & ~NOT_KEPT
    keep = fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    try:
        opened = os.open(path, flags | os.O_CLOEXEC)
        done = True
    except OSError:
        opened = os.open(os.devnull, descriptor.flags & os.O_ACCMODE | os.O_CLOEXEC)
        done = False
    try:
        with suppress(OSError):  # O_PATH has no offset, and another folder may not know this one
            os.lseek(opened, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(opened, number, inheritable=not keep)
    finally:
        os.close(opened)
    return done
