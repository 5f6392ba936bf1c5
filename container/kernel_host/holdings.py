"""What a session holds, in memory and on disk, with what shows in no process: files, with a name or without.

Much of it only the session's own user may see. The kernel host looks with that user's rights to files and stays who it
is in all else: nothing is forked when memory is short, and no process of the session can hinder the one who looks.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from . import identity
from .usage import own_memory, read, shared_memory, stat_of

BLOCK = 512  # bytes; of st_blocks
IN_MEMORY = ("/dev/shm", "/tmp")  # noqa: S108 - the container's own, on tmpfs
INODE_BYTES = 1 << 10  # of memory for each file on tmpfs, however small
STARTSTACK = 25  # field of `stat_of`: the same for a process and what is forked from it

Files = dict[tuple[int, int], int]
"""Bytes of files by device and inode, so that none counts twice."""


class Held(NamedTuple):
    """How many bytes a session holds: at least, and at most."""

    least: int
    most: float


class Holdings:
    """Looks at one session, for a limited time: who has more than can be looked at hides something."""

    def __init__(self, uid: int, pids: list[int], disk: int, seconds: float = math.inf) -> None:
        """Begins.

        Args:
            pids: all its processes.
            disk: device of the workspaces.
            seconds: of processor time.
        """
        self._uid = uid
        self._pids = pids
        self._disk = disk
        self._until = time.thread_time() + seconds

    def in_processes(self) -> Held:
        """What shows of what it holds of the container's memory at a short look."""
        return self._look(self._private)._replace(most=math.inf)

    def in_memory(self) -> Held:
        """What it holds of the container's memory."""
        return self._look(self._memory)

    def in_folder(self, folder: str) -> Held:
        """What it holds of the file system, on tmpfs, that all sessions have at `folder`."""
        return self._look(partial(self._files_on, os.stat(folder).st_dev, folder))

    def on_disk(self, folders: list[str]) -> int:
        """Bytes in folders that are its own, and in files without a name."""
        with identity.seeing_as(self._uid):
            files = {key: size for key, size in self._unlinked().items() if self._is_disk(key[0])}
            for folder in folders:
                files |= self._named(folder)
        return sum(files.values())

    def _look(self, count: Callable[[], Held]) -> Held:
        try:
            with identity.seeing_as(self._uid):
                return count()
        except _TimeIsUpError:
            return Held(0, math.inf)

    def _private(self) -> Held:
        """In processes; without a look at each page, which takes a second where there are many of them."""
        families: dict[str, list[int]] = {}
        for pid in self._processes():
            with suppress(OSError):
                families.setdefault(stat_of(pid)[STARTSTACK], []).append(own_memory(pid))
        host = stat_of(os.getpid())[STARTSTACK]
        inherited = {host: own_memory(os.getpid())}
        least = sum(_at_least(sizes, inherited.get(family, 0)) for family, sizes in families.items())
        return Held(least, sum(map(sum, families.values())))

    def _memory(self) -> Held:
        private, mapped = self._private(), [0]
        for pid in self._processes():
            with suppress(OSError):
                mapped.append(shared_memory(pid))
        files = self._unlinked()
        for folder in IN_MEMORY:
            files |= self._named(folder, INODE_BYTES)
        held = sum(size for (device, _), size in files.items() if not self._is_disk(device))
        held += sum(size for _, size in shared_segments(self._uid))
        # What is mapped may be these very files.
        return self._with_hidden(private.least + max(held, *mapped), private.most + held + sum(mapped))

    def _files_on(self, device: int, folder: str) -> Held:
        files = {**self._mapped(device), **self._unlinked(), **self._named(folder)}
        held = sum(size for key, size in files.items() if key[0] == device)
        return self._with_hidden(held, held)

    def _with_hidden(self, least: int, most: float) -> Held:
        return Held(least, math.inf if self._hides() else most)

    def _is_disk(self, device: int) -> bool:
        return device == self._disk or os.major(device) != 0  # 0 is of no block device: tmpfs, memfd_create(2)

    def _processes(self) -> Iterator[int]:
        for pid in self._pids:
            self._check_time()
            yield pid

    def _hides(self) -> bool:
        """Whether one of its processes does not let itself be looked into: prctl(2), PR_SET_DUMPABLE."""
        for pid in self._processes():
            try:
                os.close(os.open(f"/proc/{pid}/maps", os.O_RDONLY))
            except PermissionError:
                return True
            except OSError:
                continue
        return False

    def _unlinked(self) -> Files:
        """Files that only descriptors hold: memfd_create(2), or temporary ones that were removed."""
        found: Files = {}
        for pid in self._processes():
            with suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with suppress(OSError):
                        status = os.stat(f"/proc/{pid}/fd/{name}")
                        if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                            found[status.st_dev, status.st_ino] = status.st_blocks * BLOCK
        return found

    def _mapped(self, device: int) -> Files:
        """Files that were removed and are mapped, which needs no descriptor; as large as far as they are mapped."""
        found: Files = {}
        name = f"{os.major(device):02x}:{os.minor(device):02x}"
        for pid in self._processes():
            with suppress(OSError):
                for line in read(f"/proc/{pid}/maps").splitlines():
                    span, _, offset, on, inode, *_ = line.split(maxsplit=5)
                    if on == name and line.endswith(" (deleted)"):
                        start, end = (int(address, 16) for address in span.split("-"))
                        key = device, int(inode)
                        found[key] = max(found.get(key, 0), int(offset, 16) + end - start)
        return found

    def _named(self, folder: str, extra: int = 0) -> Files:
        """Files beneath a folder, without following links; each takes `extra` bytes more than its blocks."""
        found: Files = {}
        pending = [folder]
        while pending:
            with suppress(OSError), os.scandir(pending.pop()) as entries:
                for entry in entries:
                    self._check_time()
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if status.st_uid == self._uid:
                            found[status.st_dev, status.st_ino] = status.st_blocks * BLOCK + extra
                        if stat.S_ISDIR(status.st_mode):
                            pending.append(entry.path)
        return found

    def _check_time(self) -> None:
        if time.thread_time() > self._until:
            raise _TimeIsUpError


class _TimeIsUpError(Exception):
    """No OSError, as TimeoutError would be."""


def _at_least(sizes: list[int], inherited: int) -> int:
    """Bytes of a family of forks, if each shares with the others as much as the smallest has, and `inherited` with us."""
    shared = min(sizes)
    return sum(sizes) - len(sizes) * shared + max(0, shared - inherited)


def shared_segments(uid: int) -> Iterator[tuple[int, int]]:
    """Id and bytes of each segment of System V shared memory that a user owns: proc(5), sysvipc/shm."""
    with suppress(OSError):
        names, *lines = (line.split() for line in read("/proc/sysvipc/shm").splitlines())
        for line in lines:
            segment = dict(zip(names, map(int, line), strict=False))
            if segment["uid"] == uid:
                yield segment["shmid"], segment.get("rss", segment["size"])
