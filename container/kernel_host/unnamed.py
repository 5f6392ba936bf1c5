"""What processes hold that has no name: removed files that are open or mapped, sockets and pipes, and what Linux keeps for
them in queues and lists, whose size it does not tell.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from .trees import BLOCK, Key
from .usage import read

# Memory of Linux's own, roughly: a descriptor, one that is watched by another, and the events that nobody has read:
# inotify(7), max_queued_events with the longest names.
DESCRIPTOR_BYTES, WATCHED_BYTES, EVENTS_BYTES = 512, 256, 16384 * 512

Check = Callable[[], None]


@dataclass
class Opened:
    """What descriptors lead to.

    Attributes:
        unlinked: removed files, and their bytes.
        buffers: sockets and pipes.
        in_flight: descriptors are on their way in a socket.
        unseen: bytes that may be held by what else descriptors stand for.
        repeated: the same of those that may be one that was seen in another process, since they look like it.
    """

    unlinked: dict[Key, int] = field(default_factory=dict)
    buffers: set[Key] = field(default_factory=set)
    in_flight: bool = False
    unseen: int = 0
    repeated: int = 0
    _queues: set[tuple[str, str]] = field(default_factory=set)

    def take_queue(self, name: str, shown: str, size: int) -> None:
        """One whose size is known to be at most that: where a process has it, and as what /proc shows it."""
        if (name, shown) in self._queues:
            self.repeated += size
        else:
            self._queues.add((name, shown))
            self.unseen += size


def opened(pids: Iterable[int], check: Check) -> Opened:
    """Looks at descriptors.

    Args:
        check: called at each; raises to end it.
    """
    found = Opened()
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                check()
                with suppress(OSError):
                    _take(found, pid, name)
    return found


def _take(found: Opened, pid: int, name: str) -> None:
    status = os.stat(f"/proc/{pid}/fd/{name}")
    key = status.st_dev, status.st_ino
    found.unseen += DESCRIPTOR_BYTES
    if stat.S_ISREG(status.st_mode) and not status.st_nlink:
        found.unlinked[key] = status.st_blocks * BLOCK
    elif stat.S_ISSOCK(status.st_mode) and key not in found.buffers:
        found.buffers.add(key)
        found.in_flight = found.in_flight or _has_files_in_flight(pid, name)
    elif stat.S_ISFIFO(status.st_mode):
        found.buffers.add(key)
    if not stat.S_IFMT(status.st_mode) or stat.S_ISREG(status.st_mode):  # which of them one without a file is
        kind = os.readlink(f"/proc/{pid}/fd/{name}")
        if kind in ("anon_inode:inotify", "anon_inode:[eventpoll]"):
            shown = read(f"/proc/{pid}/fdinfo/{name}")
            watched = shown.count("\ntfd:")
            found.take_queue(name, shown, watched * WATCHED_BYTES if kind.endswith("]") else EVENTS_BYTES)


def _has_files_in_flight(pid: int, name: str) -> bool:
    """Whether descriptors wait in a socket: proc(5), fdinfo, `scm_fds` (Linux 5.6). In the end there is one that is open."""
    waiting = read(f"/proc/{pid}/fdinfo/{name}").partition("\nscm_fds:")[2].split(maxsplit=1)
    return bool(waiting) and waiting[0] != "0"


def mapped(pids: Iterable[int], check: Check) -> dict[Key, int]:
    """Files that were removed and are mapped, which needs no descriptor; as large as far as they are mapped.

    Memory that processes share without a file is among them.
    """
    found: dict[Key, int] = {}
    for pid in pids:
        with suppress(OSError):
            for key, end in _removed(read(f"/proc/{pid}/maps"), check):
                found[key] = max(found.get(key, 0), end)
    return found


def _removed(maps: str, check: Check) -> Iterator[tuple[Key, int]]:
    for line in maps.split("\n"):
        if line.endswith(" (deleted)"):
            check()
            span, _, offset, device, inode, *_ = line.split(maxsplit=5)
            major, minor = (int(number, 16) for number in device.split(":"))
            start, end = (int(address, 16) for address in span.split("-"))
            yield (os.makedev(major, minor), int(inode)), int(offset, 16) + end - start
