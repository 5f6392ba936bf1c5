"""What a server and its container hold, seen from outside, and whether it grows."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from tests.clients.wire import RUN_DIR_LABEL, SERVER_PID_LABEL

KIB, MEGABYTE = 1024, 1e6
SESSIONS_FOLDER = "/workspace/sessions"
# Folders of the workspace's volume two levels deep, and what lies in the container's own temporary folders.
LIST = ("find", "/workspace", "/tmp", "/dev/shm", "-mindepth", "1", "-maxdepth", "2", "-printf", "%U %p\\n")  # noqa: S108
FIRST_SESSION_UID = 20_000
SOCKETS = "server: sockets"
OTHERS = "server: other descriptors"
ENGINE_CONNECTIONS = 25  # that docker-py may keep for later requests: one for each of its latest addresses
# By how much these may differ when nobody uses the server.
AT_REST = {OTHERS: 0, SOCKETS: ENGINE_CONNECTIONS, "containers": 0, "container: processes": 0, "run folder: entries": 0}


@dataclass(frozen=True)
class Sample:
    """One look.

    Attributes:
        figures: by name, for the table.
        folders: of sessions, by session id.
        strays: processes (pid, uid) of users that have no session's folder.
        entries: how many there are in each folder of the container.
    """

    at: float
    figures: dict[str, float]
    folders: frozenset[str]
    strays: frozenset[tuple[int, int]]
    entries: dict[str, int] = field(default_factory=dict)

    def differs(self, other: Sample) -> list[str]:
        """What is not as in another sample, though nobody uses the server."""
        pairs = {name: (self.figures[name], other.figures[name]) for name in AT_REST}
        entries = self.entries | other.entries
        pairs |= {name: (self.entries.get(name, 0), other.entries.get(name, 0)) for name in entries}
        return [
            f"{name} {mine:g} → {theirs:g}"
            for name, (mine, theirs) in pairs.items()
            if abs(mine - theirs) > AT_REST.get(name, 0)
        ]


class Observer:
    """Looks at one server, its container and its folders."""

    def __init__(self, pid: int, state: Path) -> None:
        self.pid = pid
        self._state = state
        self._engine = docker.from_env()
        self._container = self.containers()[0]
        init = str(self._container.attrs["State"]["Pid"])
        children = self._container.top(ps_args="-o pid,uid,ppid")["Processes"]
        self._kernel_host = next(int(pid) for pid, uid, parent in children if (uid, parent) == ("0", init))
        self.run_dir = Path(self._container.labels[RUN_DIR_LABEL])

    def containers(self) -> list[Any]:
        """Those of the server, whatever their state."""
        label = f"{SERVER_PID_LABEL}={self.pid}"
        return list(self._engine.containers.list(all=True, ignore_removed=True, filters={"label": label}))

    def close(self) -> None:
        """Lets go of the engine."""
        self._engine.close()

    def look(self, at: float) -> Sample:
        """Everything, now. Takes some tenths of a second; a session may come or go meanwhile."""
        before = self._listing()
        processes = [tuple(map(int, row)) for row in self._container.top(ps_args="-o pid,uid")["Processes"]]
        after = self._listing()
        owners = {owner for owner, path in (*before, *after) if path.startswith(f"{SESSIONS_FOLDER}/")}
        entries = Counter(str(Path(path).parent) for _, path in after)
        descriptors = Counter(_descriptors(self.pid))
        journals = [path.stat().st_size for path in self._state.rglob("*.jsonl")]
        figures = {
            "server: RSS, MB": _status(self.pid, "VmRSS") * KIB / MEGABYTE,
            SOCKETS: descriptors["socket"],
            OTHERS: descriptors.total() - descriptors["socket"],
            "server: threads": _status(self.pid, "Threads"),
            "containers": len(self.containers()),
            "container: memory, MB": self._memory() / MEGABYTE,
            "container: kernel_host's RSS, MB": _status(self._kernel_host, "VmRSS") * KIB / MEGABYTE,
            "container: processes": len(processes),
            "sessions' folders": entries[SESSIONS_FOLDER],
            "run folder: entries": sum(len(folders) + len(files) for _, folders, files in os.walk(self.run_dir.parent)),
            "journals (they are kept)": len(journals),
            "journals, MB (they are kept)": sum(journals) / MEGABYTE,
        }
        return Sample(
            at,
            {name: float(value) for name, value in figures.items()},
            frozenset(Path(path).name for _, path in after if path.startswith(f"{SESSIONS_FOLDER}/")),
            frozenset((pid, uid) for pid, uid in processes if uid >= FIRST_SESSION_UID and uid not in owners),
            dict(entries),
        )

    def _listing(self) -> list[tuple[int, str]]:
        """Owner and path of what there is in the container's folders."""
        said, _ = self._container.exec_run([*LIST], demux=True).output
        lines = said.decode(errors="replace").splitlines()
        return [(int(owner), path) for owner, _, path in (line.partition(" ") for line in lines) if owner.isdigit()]

    def _memory(self) -> int:
        """Without the page cache: `rss` and `shmem` of cgroup v1, `anon` and `shmem` of v2."""
        stats = self._container.stats(stream=False, one_shot=True)["memory_stats"]["stats"]
        return int(stats["rss"] if "rss" in stats else stats["anon"]) + int(stats.get("shmem", 0))


def _descriptors(pid: int) -> Iterator[str]:
    """The kind of each: `socket`, `anon_inode`, `pipe` or a path."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it has been closed meanwhile
            yield str(descriptor.readlink()).partition(":")[0]


def _status(pid: int, name: str) -> int:
    """A number of proc(5), status; sizes in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@dataclass(frozen=True)
class Trend:
    """How a figure went over the last two thirds of a run.

    Attributes:
        hourly: least squares, in units of the figure per hour.
        growth: over that time, as a part of the mean.
    """

    mean: float
    peak: float
    hourly: float
    growth: float


def trend(samples: Sequence[Sample], name: str) -> Trend:
    """Of one figure; the peak is that of the whole run."""
    late = samples[len(samples) // 3 :]
    times, values = [sample.at for sample in late], [sample.figures[name] for sample in late]
    slope = statistics.linear_regression(times, values).slope if len(late) > 1 else 0.0
    mean = statistics.mean(values)
    growth = slope * (times[-1] - times[0]) / mean if mean else 0.0
    return Trend(mean, max(sample.figures[name] for sample in samples), slope * 3600, growth)
