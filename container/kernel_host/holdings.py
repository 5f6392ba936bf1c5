"""What a session holds, in memory and on disk, with what shows in no process: files, with a name or without.

Much of it only the session's own user may see. The kernel host looks with that user's rights to files and stays who it
is in all else: nothing is forked when memory is short, and no process of the session can hinder the one who looks.

What cannot be seen counts as hidden: a process that does not let itself be looked into, files that are on their way
in a socket, many sockets and pipes, whose buffers nobody shows, events that nobody has read, shared memory that is mapped
and was not touched. Who hides something may hold anything.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple

from . import identity, sockets, unnamed
from .trees import Key, look_into
from .unnamed import Opened
from .usage import living_task, own_memory, page_tables, read, shared_memory, stat_of

IN_MEMORY = ("/dev/shm", "/tmp")  # noqa: S108 - the container's own, on tmpfs
INODE_BYTES = 1 << 10  # of memory for each file on tmpfs, however small
STARTSTACK = 25  # field of `stat_of`: the same for a process and what is forked from it
MANY_BUFFERS = 512  # sockets and pipes of a session, each with up to some 100 KB; a pool of 64 processes has 200
MUCH_UNSEEN = 32 << 20  # bytes that a session may hold beside what is measured, without being suspected

Files = dict[Key, int]
"""Bytes of files by device and inode, so that none counts twice."""


class Held(NamedTuple):
    """How many bytes a session holds: at least, and at most."""

    least: int
    most: float


class OnDisk(NamedTuple):
    """How many bytes and files a session has on the disk of the workspaces, and whether there may be more."""

    bytes: int
    files: int
    hidden: bool


class InMemory:
    """The files on the file systems in memory that all sessions have: of all users, seen in one go."""

    def __init__(self, seconds: float = math.inf) -> None:
        """Looks.

        Args:
            seconds: of processor time, at most.
        """
        self._until = time.thread_time() + seconds
        self._found: dict[str, dict[int, Files]] = {folder: {} for folder in IN_MEMORY}
        self._unseen: set[int] = set()  # users of whose folders not all was seen
        for folder, found in self._found.items():
            self._look(folder, found)

    def _look(self, folder: str, found: dict[int, Files]) -> None:
        """Each folder is looked into with the rights of whom it belongs to."""
        pending, tried = [(folder, os.lstat(folder).st_uid)], set[tuple[str, int]]()
        while pending:
            path, owner = pending.pop()
            try:
                with self._acting_as(owner):
                    seen = look_into(path, found, self._check_time)
            except _TimeIsUpError:
                self._unseen |= {owner, *(other for _, other in pending)}
                continue
            tried.add((path, owner))
            if not seen.complete:
                self._unseen.add(owner)
            for other in seen.others:
                if (
                    other in tried
                ):  # a folder in one of another user, in one of his, and so on: who moves them meanwhile?
                    self._unseen.add(other[1])
                else:
                    pending.append(other)

    def _acting_as(self, owner: int) -> AbstractContextManager[None]:
        return identity.seeing_as(owner) if os.geteuid() == 0 else nullcontext()  # nobody else can become others

    def _check_time(self) -> None:
        if time.thread_time() > self._until:
            raise _TimeIsUpError

    def of(self, user: int, folder: str) -> Files:
        """A user's files there."""
        return self._found[folder].get(user, {})

    def has_seen_all_of(self, user: int) -> bool:
        """Whether none of that user's folders was missed."""
        return user not in self._unseen


class Holdings:
    """Looks at one session, for a limited time: who has more than can be looked at hides something."""

    def __init__(
        self,
        uid: int,
        pids: list[int],
        disk: int,
        seconds: float = math.inf,
        *,
        in_memory: Callable[[], InMemory] = InMemory,
        buffers: Callable[[], Mapping[int, int]] = sockets.bytes_by_user,
    ) -> None:
        """Begins.

        Args:
            pids: all its processes.
            disk: device of the workspaces.
            seconds: of processor time.
            in_memory: looks for the files on tmpfs.
            buffers: tells the bytes in sockets, by user.
        """
        self._uid = uid
        self._pids = pids
        self._tasks: list[int] | None = None
        self._disk = disk
        self._until = time.thread_time() + seconds
        self._in_memory = functools.cache(in_memory)
        self._buffers = buffers
        self._opened: Opened | None = None
        self._mapped: dict[Key, int] | None = None

    def in_processes(self) -> Held:
        """What shows of what it holds of the container's memory at a short look: in processes and in sockets."""
        sent = self._buffers().get(self._uid, 0)
        return Held(self._look(self._private).least + sent, math.inf)

    def in_memory(self) -> Held:
        """What it holds of the container's memory."""
        return self._look(self._memory)

    def in_folder(self, folder: str) -> Held:
        """What it holds of the file system, on tmpfs, that all sessions have at `folder`."""
        return self._look(lambda: self._files_on(os.stat(folder).st_dev, folder))

    def inodes_in_folder(self, folder: str) -> Held:
        """The same in files."""
        return self._look(lambda: self._inodes_on(folder))

    def on_disk(self, folders: list[str]) -> OnDisk:
        """What is in folders that are its own, and in files without a name.

        Raises:
            OSError: it cannot be looked for.
        """
        with identity.seeing_as(self._uid):
            opened = self._open()
            files = {key: size for key, size in opened.unlinked.items() if self._is_disk(key[0])}
            files = {**self._mapped_on(self._disk), **files}
            hidden = opened.in_flight or self._is_closed()
            for folder in folders:
                named: dict[int, Files] = {}
                seen = look_into(folder, named, self._check_time)
                hidden = hidden or not seen.complete or bool(seen.others)
                for some in named.values():
                    files |= some
        return OnDisk(sum(files.values()), len(files), hidden)

    def _look(self, count: Callable[[], Held]) -> Held:
        try:
            with identity.seeing_as(self._uid):
                return count()
        except (_TimeIsUpError, OSError, ValueError, IndexError):  # what is in /proc is made by the session, too
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
        private, mapped, tables = self._private(), [0], 0
        for pid in self._processes():
            with suppress(OSError):
                mapped.append(shared_memory(pid))
                tables += page_tables(pid)
        files = dict(self._open().unlinked)
        for folder in IN_MEMORY:
            files |= {key: size + INODE_BYTES for key, size in self._named(folder).items()}
        held = sum(size for (device, _), size in files.items() if not self._is_disk(device))
        held += sum(size for _, size in shared_segments(self._uid))
        other = tables + self._buffers().get(self._uid, 0)
        unseen = max(0, self._shared_elsewhere() - max(mapped))
        most = private.most + other + held + sum(mapped) + unseen + self._open().unseen + self._open().repeated
        # What is mapped may be these very files.
        return self._with_hidden(private.least + other + max(held, *mapped), most, unseen + self._open().unseen)

    def _files_on(self, device: int, folder: str) -> Held:
        files = {**self._mapped_on(device), **self._open().unlinked, **self._named(folder)}
        held = sum(size for key, size in files.items() if key[0] == device)
        return self._with_hidden(held, held)

    def _inodes_on(self, folder: str) -> Held:
        device = os.stat(folder).st_dev
        unlinked = {key for key in self._open().unlinked if key[0] == device}
        count = len(unlinked | self._named(folder).keys())
        return self._with_hidden(count, count)

    def _named(self, folder: str) -> Files:
        return self._in_memory().of(self._uid, folder)

    def _with_hidden(self, least: int, most: float, unseen: int = 0) -> Held:
        opened = self._open()
        hides = opened.in_flight or len(opened.buffers) > MANY_BUFFERS or self._is_closed()
        hides = hides or unseen > MUCH_UNSEEN or not self._in_memory().has_seen_all_of(self._uid)
        return Held(least, math.inf if hides else most)

    def _is_disk(self, device: int) -> bool:
        return device == self._disk or os.major(device) != 0  # 0 is of no block device: tmpfs, memfd_create(2)

    def _processes(self) -> Iterator[int]:
        if self._tasks is None:
            self._tasks = list(self._living())
        for pid in self._tasks:
            self._check_time()
            yield pid

    def _living(self) -> Iterator[int]:
        for pid in self._pids:
            self._check_time()
            with suppress(OSError, IndexError):
                yield living_task(pid)

    def _is_closed(self) -> bool:
        """Whether one of its processes does not let itself be looked into: prctl(2), PR_SET_DUMPABLE."""
        for pid in self._processes():
            try:
                os.close(os.open(f"/proc/{pid}/maps", os.O_RDONLY))
            except PermissionError:
                return True
            except OSError:
                continue
        return False

    def _open(self) -> Opened:
        if self._opened is None:
            self._opened = unnamed.opened(self._processes(), self._check_time)
        return self._opened

    def _all_mapped(self) -> dict[Key, int]:
        if self._mapped is None:
            self._mapped = unnamed.mapped(self._processes(), self._check_time)
        return self._mapped

    def _mapped_on(self, device: int) -> Files:
        return {key: size for key, size in self._all_mapped().items() if key[0] == device}

    def _shared_elsewhere(self) -> int:
        """Bytes of memory that is mapped, without a name: mmap(2), MAP_SHARED and MAP_ANONYMOUS. How much of it there is,
        Linux tells of what was touched only, and not of what was given back since.
        """
        return sum(size for (device, _), size in self._all_mapped().items() if not self._is_disk(device))

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
