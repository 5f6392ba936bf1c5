"""What a session uses: read from /proc by a helper that has become its UID."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

NO_LIMIT = 1 << 62  # cgroup v1 writes a number near 2**63 for it
PAGE = os.sysconf("SC_PAGE_SIZE")
IN_MEMORY = ("/dev/shm", "/tmp")  # noqa: S108 - the container's own, on tmpfs
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def usage(uid: int | None, group: int | None) -> dict[str, Any]:
    """`memory` (bytes; shared pages count in parts: PSS), `cpu_seconds` and number of `processes`.

    Args:
        uid: whose processes; None without isolation, where it is those of the process `group`.
    """
    memory, ticks, processes = 0, 0, 0
    for pid in _processes(uid, group):
        try:
            memory += _memory(pid)
            ticks += _ticks(pid)
            processes += 1
        except OSError:  # it has ended meanwhile
            continue
    return {"memory": memory, "cpu_seconds": ticks / CLOCK_TICKS, "processes": processes}


def _processes(uid: int | None, group: int | None) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            owner = os.stat(f"/proc/{name}").st_uid
            if owner == uid if uid is not None else os.getpgid(int(name)) == group:
                yield int(name)
        except OSError:
            continue


def _memory(pid: int) -> int:
    """proc(5), smaps_rollup: Linux 4.14."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(("Pss:", "SwapPss:")))


def _ticks(pid: int) -> int:
    """proc(5), stat: utime and stime of a process, and of its children that have ended."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def full_usage(uid: int | None, folders: list[str]) -> dict[str, Any]:
    """As `usage`, with what no process shows: `memory` has shared memory and files without a name, `disk` the files.

    Args:
        folders: on disk, of the session alone.
    """
    used = usage(uid, None)
    unseen = sum(_unnamed_files(pid) for pid in _processes(uid, None)) + _system_v(uid)
    unseen += sum(_size_of(folder, uid) for folder in IN_MEMORY)
    return {"memory": used["memory"] + unseen, "disk": sum(_size_of(folder, uid) for folder in folders)}


def _unnamed_files(pid: int) -> int:
    """Bytes in files that only a descriptor holds: memfd_create(2), or a temporary file that was removed."""
    total = 0
    seen: set[tuple[int, int]] = set()
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                if stat.S_ISREG(status.st_mode) and not status.st_nlink and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
    return total


def _system_v(uid: int | None) -> int:
    """Bytes of System V shared memory that a user owns: proc(5), sysvipc/shm."""
    total = 0
    with suppress(OSError), open("/proc/sysvipc/shm", encoding="ascii") as file:
        names = file.readline().split()
        for line in file:
            segment = dict(zip(names, line.split(), strict=False))
            if segment.get("uid") == str(uid):
                total += int(segment.get("rss", segment["size"]))
    return total


def _size_of(folder: str, uid: int | None) -> int:
    """Bytes on disk of a user's files beneath a folder, without following links."""
    total = 0
    pending = [folder]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid == uid:
                        total += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
    return total


def resident_by_uid() -> dict[int, int]:
    """Bytes of memory of each user's processes, without what is shared through files: proc(5), statm."""
    total: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            owner = os.stat(f"/proc/{name}").st_uid
            resident, shared = map(int, _read(f"/proc/{name}/statm").split()[1:3])
            total[owner] = total.get(owner, 0) + (resident - shared) * PAGE
    return total


def processor_ticks() -> dict[int, tuple[int, int]]:
    """User and clock ticks so far of each process: proc(5), stat."""
    ticks: dict[int, tuple[int, int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
            ticks[int(name)] = os.stat(f"/proc/{name}").st_uid, int(fields[11]) + int(fields[12])
    return ticks


def container_memory() -> dict[str, Any]:
    """`used` and `limit` of the container in bytes; the page cache that can go counts as free. `limit` 0 is none.

    Source: cgroup-v2, memory.current; cgroup-v1, memory.usage_in_bytes.
    """
    for folder, current, limit, prefix in (
        ("/sys/fs/cgroup", "memory.current", "memory.max", ""),
        ("/sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_"),
    ):
        with suppress(OSError):
            used = int(_read(f"{folder}/{current}"))
            statistics = dict(line.split() for line in _read(f"{folder}/memory.stat").splitlines())
            most = _read(f"{folder}/{limit}").strip()
            bounded = most.isdigit() and int(most) < NO_LIMIT
            cache = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            return {"used": used - cache, "limit": int(most) if bounded else 0}
    return {"used": 0, "limit": 0}


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
