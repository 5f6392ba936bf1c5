"""What happens to the files of a workspace, by inotify: nothing to pay for files that nobody touches.

Source: inotify(7). Hidden files and `__pycache__` are not watched. Writes through a memory map are not seen.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import termios
import time
from array import array
from collections.abc import Iterator
from itertools import islice

from .listing import is_shown
from .variables import Changes

CREATE, DELETE, MODIFY, MOVED_FROM, MOVED_TO = 0x100, 0x200, 0x2, 0x40, 0x80
Q_OVERFLOW, IGNORED, ISDIR = 0x4000, 0x8000, 0x40000000
ONLYDIR, DONT_FOLLOW, EXCL_UNLINK = 0x01000000, 0x02000000, 0x04000000
EVENTS = CREATE | DELETE | MODIFY | MOVED_FROM | MOVED_TO | ONLYDIR | DONT_FOLLOW | EXCL_UNLINK
CLOCK_REALTIME_COARSE = 5  # the clock of file systems
HEADER = struct.Struct("iIII")
READ_BYTES = 256 << 10
MAX_FOLDERS = 1_000
MAX_FILES = 20_000  # beyond it nothing is said of files any more


class Watch:
    """The files of one folder and what is below it, and what happened to them since the last look."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._folders: dict[int, str] = {}  # watch descriptor → folder, "" or with a slash at its end
        self._files: set[str] = set()
        self._touched: set[str] = set()
        self._before: set[str] = set()  # those of `_touched` that were there
        self._since = 0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        if hasattr(self._libc, "inotify_init1"):
            self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._add("")
        self.forget()

    def forget(self) -> None:
        """What has happened so far is of no interest."""
        self._drain()
        self._start_anew()

    def changes(self) -> Changes:
        """What has happened since this or `forget` was last called."""
        self._drain()
        changes = Changes()
        for path in sorted(self._touched):
            there, before = path in self._files, path in self._before
            if there or before:
                names = changes.removed if not there else changes.changed if before else changes.created
                names.append(path)
        self._start_anew()
        return changes

    def _start_anew(self) -> None:
        self._touched.clear()
        self._before.clear()
        self._since = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)

    def _drain(self) -> None:
        for descriptor, mask, name in self._events():
            if mask & Q_OVERFLOW:
                self._look_again()
            elif mask & IGNORED:
                self._folders.pop(descriptor, None)
            elif descriptor in self._folders and is_shown(name):
                self._take(self._folders[descriptor] + name, mask)
        if len(self._files) > MAX_FILES:
            self._give_up()

    def _events(self) -> Iterator[tuple[int, int, str]]:
        """Those that there are by now: where something goes on changing files, more would come for ever."""
        left = self._waiting_bytes()
        while self._fd >= 0 and left > 0:
            try:
                data = os.read(self._fd, READ_BYTES)
            except OSError:
                return
            left -= len(data)
            at = 0
            while at < len(data):
                descriptor, mask, _, length = HEADER.unpack_from(data, at)
                at += HEADER.size
                name = data[at : at + length].rstrip(b"\0")
                at += length
                yield descriptor, mask, os.fsdecode(name)

    def _waiting_bytes(self) -> int:
        waiting = array("i", [0])
        if self._fd >= 0:
            fcntl.ioctl(self._fd, termios.FIONREAD, waiting)  # inotify(7)
        return waiting[0]

    def _take(self, path: str, mask: int) -> None:
        if not mask & ISDIR:
            self._note(path, there=not mask & (DELETE | MOVED_FROM))
        elif mask & (CREATE | MOVED_TO):
            self._add(path + "/")
        elif mask & MOVED_FROM:  # one that is deleted is empty
            self._leave(path + "/")

    def _leave(self, folder: str) -> None:
        """A folder is not at this place any more; watches would follow it to wherever it is now."""
        for descriptor in [key for key, watched in self._folders.items() if watched.startswith(folder)]:
            self._libc.inotify_rm_watch(self._fd, descriptor)
            del self._folders[descriptor]
        for file in [file for file in self._files if file.startswith(folder)]:
            self._note(file, there=False)

    def _note(self, path: str, *, there: bool) -> None:
        if path not in self._touched:
            self._touched.add(path)
            if path in self._files:
                self._before.add(path)
        (self._files.add if there else self._files.discard)(path)

    def _add(self, folder: str) -> None:
        """Watches a folder and those below it; what is in them by now is new: its events may have come too early."""
        waiting = [folder]
        while waiting and self._fd >= 0 and len(self._folders) < MAX_FOLDERS and len(self._files) <= MAX_FILES:
            folder = waiting.pop()
            path = os.fsencode(self._root + "/" + folder)
            descriptor = self._libc.inotify_add_watch(self._fd, path, EVENTS)
            if descriptor < 0:
                continue
            self._folders[descriptor] = folder
            for entry in _entries(path):
                name = os.fsdecode(entry.name)
                if is_shown(name) and entry.is_dir(follow_symlinks=False):
                    waiting.append(folder + name + "/")
                elif is_shown(name):
                    self._note(folder + name, there=True)

    def _look_again(self) -> None:
        """Events were lost: looks at every file, and at its time whether it has changed."""
        touched, known = set(self._touched), set(self._files)
        for path in known:
            self._note(path, there=False)
        self._folders.clear()
        self._add("")
        for path in (known & self._files) - touched:
            if _time_of(f"{self._root}/{path}") < self._since:
                self._touched.discard(path)

    def _give_up(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._folders.clear()
        self._files.clear()
        self._touched.clear()
        self._before.clear()


def _entries(path: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(path) as entries:
            return list(islice(entries, MAX_FILES + 1))
    except OSError:
        return []


def _time_of(path: str) -> int:
    try:
        return os.lstat(path).st_ctime_ns  # also of a file that was moved here
    except OSError:
        return 0
