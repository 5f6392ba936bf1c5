"""Swaps what lies at a name, as fast as it can, until it is killed: what session code may do while its files are copied.

It runs beside transfers as their session's user: forked by `races`, and as a program inside a session, for which it
needs nothing but Python: `python planting.py PATTERN FOLDER OUTSIDE`. Each pattern keeps to a folder of its own name.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

OWN = b"now " + b"own " * 250  # what the session's files hold; nothing else has only these letters
SYSTEM_FILE = "/etc/passwd"  # every user may read it
SECRET = "secret"  # noqa: S105 - of the victim, beneath OUTSIDE: a file that every user may read and write
LOCKED = "locked"  # another, which only its owner may
FOLDER = "folder"  # of the victim; every user may write into it, too. It has files of the names that transfers ask for
ENDLESS = os.makedev(1, 5)  # /dev/zero
GROWTHS = (0, 100, 1_000_000, 4_000_000, 64 << 30)  # the last ones sparse
RENAME_EXCHANGE = 2  # renameat2(2)
AT_FDCWD = -100
DEPTH = 5
TEMPORARY = ".planted"

_libc = ctypes.CDLL(None, use_errno=True)
Swap = Callable[[str], None]


@contextmanager
def _as_root() -> Iterator[None]:
    """What a session cannot make itself is made for it by root, where this process has been root: a harder test."""
    user = os.geteuid()
    if 0 not in os.getresuid():
        yield
        return
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


def _write(path: str, content: bytes = OWN) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _place(path: str, make: Callable[[str], object]) -> None:
    """Makes something at `path` in one step, in place of any file."""
    temporary = f"{os.path.dirname(path)}/{TEMPORARY}"
    with suppress(OSError):
        os.unlink(temporary)
    make(temporary)
    os.rename(temporary, path)


def _link_to(target: str) -> Callable[[str], object]:
    return lambda path: os.symlink(target, path)


def _exchange(one: str, other: str) -> None:
    paths = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def _remove(path: str) -> None:
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def make_own(folder: str, depth: int = 0) -> None:
    """Files of the session's, some folders deep."""
    os.makedirs(folder, exist_ok=True)
    _write(f"{folder}/x")
    if depth:
        make_own(f"{folder}/d", depth - 1)


class Planter:
    """Swaps in `folder`; `outside` is the victim's."""

    def __init__(self, folder: str, outside: str) -> None:
        self._folder = folder
        self._outside = outside
        self._random = random.Random(folder)  # noqa: S311 - to be repeated

    def file_and_link(self, folder: str) -> None:
        """The file is a link to a victim's file."""
        _place(f"{folder}/x", _link_to(f"{self._outside}/{SECRET}"))
        _place(f"{folder}/x", _write)

    def file_and_system_link(self, folder: str) -> None:
        """The file is a link to a file of the system, absolute or by any number of `..`."""
        _place(f"{folder}/x", _link_to(self._random.choice((SYSTEM_FILE, "../" * 30 + SYSTEM_FILE[1:]))))
        _place(f"{folder}/x", _write)

    def folder_and_link(self, folder: str) -> None:
        """The folder is a link to a victim's folder."""
        self._swap_folder(f"{folder}/d", f"{self._outside}/{FOLDER}", depth=1)

    def deep_folder_moved(self, folder: str) -> None:
        """A folder far down is moved to the top, so that its `..` is another, and a link is in its place; then back."""
        far, near = f"{folder}/{'d/' * DEPTH}"[:-1], f"{folder}/away"
        try:
            os.rename(far, near)
            os.symlink(self._random.choice(("../" * 30 + self._outside[1:], f"{self._outside}/{FOLDER}")), far)
            os.unlink(far)
            os.rename(near, far)
        except OSError:
            _remove(near)
            _remove(f"{folder}/d")
            make_own(folder, DEPTH + 1)

    def file_and_fifo(self, folder: str) -> None:
        """The file is a fifo, with or without somebody at its other end."""
        _place(f"{folder}/x", os.mkfifo)
        if self._random.random() < 0.3:
            with suppress(OSError):
                writer = os.open(f"{folder}/x", os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
                os.utime(f"{folder}/x")
                os.close(writer)
        _place(f"{folder}/x", _write)

    def file_and_hard_link(self, folder: str) -> None:
        """The file is another name of a victim's file, which the session may not read."""

        def link(path: str) -> None:
            try:
                with _as_root():
                    os.link(f"{self._outside}/{LOCKED}", path)
            except OSError:  # proc(5), protected_hardlinks, or a wall of its own: then one of the session's files
                _write(f"{folder}/other")
                os.link(f"{folder}/other", path)

        with suppress(OSError):
            _place(f"{folder}/x", link)
        _place(f"{folder}/x", _write)

    def file_grows_and_shrinks(self, folder: str) -> None:
        """The file gets longer and shorter while it is read; most of it is sparse."""
        with suppress(OSError), open(f"{folder}/x", "r+b") as file:
            for _ in range(10):
                # Beyond the limit for files (setrlimit(2)) this is an error; the signal is ignored by Python.
                os.truncate(file.fileno(), self._random.choice(GROWTHS))
                os.pwrite(file.fileno(), OWN, 0)
            return
        _place(f"{folder}/x", _write)

    def file_and_device(self, folder: str) -> None:
        """The file is a socket, then a device that gives bytes without end."""

        def device(path: str) -> None:
            with _as_root():
                os.mknod(path, stat.S_IFCHR | 0o666, ENDLESS)
                os.chmod(path, 0o666)  # noqa: S103 - whoever opens it gets something

        def bind(path: str) -> None:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)

        for make in (bind, device):
            with suppress(OSError):
                _place(f"{folder}/x", make)
            _place(f"{folder}/x", _write)

    def _swap_folder(self, path: str, target: str, depth: int) -> None:
        other = f"{path}-other"
        try:
            _exchange(path, other)
            _exchange(path, other)
        except OSError:
            pass
        if not os.path.islink(other) or not os.path.isdir(path) or os.path.islink(path):
            for name in (path, other):  # a transfer has put something in its place
                _remove(name)
            make_own(path, depth)
            os.symlink(target, other)

    def run(self, pattern: str) -> None:
        """Swaps for ever."""
        swap: Swap = getattr(self, pattern)
        folder = f"{self._folder}/{pattern}"
        while True:
            try:
                swap(folder)
            except OSError:  # a transfer was faster
                with suppress(OSError):
                    _remove(f"{folder}/x")
                    make_own(folder)


PATTERNS = tuple(name for name in vars(Planter) if not name.startswith("_") and name != "run")

if __name__ == "__main__":
    Planter(*sys.argv[2:]).run(sys.argv[1])
