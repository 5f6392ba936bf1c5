"""What processes and the container use: read from /proc and the control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from .identity import mark_of

PAGE = os.sysconf("SC_PAGE_SIZE")
NO_LIMIT = 1 << 62  # cgroup v1 writes a number near 2**63 for it
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
ENDED = ("Z", "X", "x")  # states of a process, or thread: proc(5), stat


def usage(uid: int | None, group: int | None, mark: int = 0) -> dict[str, Any]:
    """`memory` (bytes; shared pages count in parts: PSS), `cpu_seconds` and number of `processes`; for their user.

    Args:
        uid: whose processes; None without isolation, where it is those of the process `group`.
        mark: only those that have it; 0 is all.
    """
    memory, ticks, count = 0, 0, 0
    for pid, owner in processes():
        with suppress(OSError):  # it has ended meanwhile
            if pid == os.getpid() or (mark and mark_of(pid) != mark):
                continue
            if owner == uid if uid is not None else os.getpgid(pid) == group:
                memory += _pss(living_task(pid))
                ticks += sum(ticks_of(pid))
                count += 1
    return {"memory": memory, "cpu_seconds": ticks / CLOCK_TICKS, "processes": count}


def processor_ticks() -> dict[int, tuple[int, int]]:
    """User and clock ticks so far of each process."""
    ticks: dict[int, tuple[int, int]] = {}
    for pid, uid in processes():
        with suppress(OSError):
            ticks[pid] = uid, sum(ticks_of(pid)[:2])
    return ticks


def idle_ticks() -> int:
    """Clock ticks so far in which processors of the machine had nothing to do: proc(5), stat."""
    return sum(int(ticks) for ticks in read("/proc/stat").split(maxsplit=6)[4:6])


def container_memory() -> dict[str, Any]:
    """`used` and `limit` of the container in bytes; the page cache that can go counts as free. `limit` 0 is none.

    Source: cgroup-v2, memory.current; cgroup-v1, memory.usage_in_bytes.
    """
    for folder, current, limit, prefix in (
        ("/sys/fs/cgroup", "memory.current", "memory.max", ""),
        ("/sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_"),
    ):
        with suppress(OSError):
            used = int(read(f"{folder}/{current}"))
            statistics = dict(line.split() for line in read(f"{folder}/memory.stat").splitlines())
            most = read(f"{folder}/{limit}").strip()
            bounded = most.isdigit() and int(most) < NO_LIMIT
            cache = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            return {"used": used - cache, "limit": int(most) if bounded else 0}
    return {"used": 0, "limit": 0}


def machine_memory() -> dict[str, int]:
    """`total` memory of the machine, and what is `available` of it without swapping, in bytes: proc(5), meminfo."""
    lines = (line.split() for line in read("/proc/meminfo").splitlines())
    sizes = {name: int(size) << 10 for name, size, *_ in lines}
    return {"total": sizes["MemTotal:"], "available": sizes["MemAvailable:"]}


def processes() -> Iterator[tuple[int, int]]:
    """Process id and effective user of each process."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            yield pid, os.stat(f"/proc/{pid}").st_uid


def processes_by_uid() -> dict[int, list[int]]:
    """Process ids of each effective user."""
    found: dict[int, list[int]] = {}
    for pid, uid in processes():
        found.setdefault(uid, []).append(pid)
    return found


def with_mark(pids: list[int], mark: int) -> list[int]:
    """Those that have it; all, if it is 0."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if not mark or mark_of(pid) == mark:
                found.append(pid)
    return found


def stat_of(pid: int) -> list[str]:
    """proc(5), stat, from the third field on, the state."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def living_task(pid: int) -> int:
    """The process, or where its first thread has ended, which then shows nothing any more, another one: its memory is theirs.

    Raises:
        OSError: it has ended.
    """
    if stat_of(pid)[0] not in ENDED:
        return pid
    tasks = map(int, os.listdir(f"/proc/{pid}/task"))
    return next((task for task in tasks if task != pid and _is_alive(task)), pid)


def _is_alive(task: int) -> bool:
    with suppress(OSError, IndexError):
        return stat_of(task)[0] not in ENDED
    return False


def own_memory(pid: int) -> int:
    """Bytes that are the process's own, or shared with what it was forked from: proc(5), statm."""
    resident, shared = read(f"/proc/{pid}/statm").split()[1:3]
    return (int(resident) - int(shared)) * PAGE


def shared_memory(pid: int) -> int:
    """Bytes that it maps of files in memory, with a name or without."""
    return _status_bytes(pid, "RssShmem")


def page_tables(pid: int) -> int:
    """Bytes that Linux has for where its memory is: a process can make them as large as it likes."""
    return _status_bytes(pid, "VmPTE")


def _status_bytes(pid: int, field: str) -> int:
    """proc(5), status; 0 for a process that has ended."""
    size = read(f"/proc/{pid}/status").partition(f"\n{field}:")[2].split(maxsplit=1)
    return int(size[0]) << 10 if size else 0


def ticks_of(pid: int) -> list[int]:
    """Clock ticks of the process, user and system, and of its children that have ended."""
    return [int(field) for field in stat_of(pid)[11:15]]


def _pss(pid: int) -> int:
    """proc(5), smaps_rollup: Linux 4.14."""
    lines = read(f"/proc/{pid}/smaps_rollup").split("\n")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss:", "SwapPss:")))


def read(path: str) -> str:
    """The text of a small file, of which only a line feed ends a line: a session names its programs and files as it likes."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        return file.read()
