"""What a run of kills has found: lines of PASS or FAIL, and what is left in the engine and on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak_report import SHOWN, Verdict
from tests.clients.wire import RUN_DIR_LABEL, SERVER_PID_LABEL
from tests.driving import docker_client

VOLUME_PREFIX = "kernel-server-shared-"
TEMPORARY_PREFIX = ".kernel-server-"


@dataclass
class Record:
    """What happened.

    Attributes:
        kills: by moment.
        caught: tools in flight at the kills.
        cells: how many were sent, have finished and were in flight.
        ended: how many sessions ended how.
        errors: what was not as it must be, in words.
        said: lines of the servers' stderr that tell of a bug.
    """

    kills: Counter[str] = field(default_factory=Counter)
    caught: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    grace: float = 0.0


class Leftovers:
    """Looks for what servers may have left; what there was of them is remembered at each `look`."""

    def __init__(self, folder: Path, run_folders: Path) -> None:
        self._state = folder / "state"
        self._out = folder / "out"
        self._run_folders = run_folders
        self._containers: set[str] = set()
        self._volumes: set[str] = set()

    def look(self, pids: Iterable[int]) -> list[dict[str, Any]]:
        """The containers that there are now, whatever their state."""
        wanted = set(map(str, pids))
        with docker_client() as client:
            found: list[dict[str, Any]] = [
                container
                for container in client.containers(all=True, filters={"label": [RUN_DIR_LABEL]})
                if container["Labels"][SERVER_PID_LABEL] in wanted
            ]
        self._containers |= {container["Id"] for container in found}
        for container in found:
            self._volumes |= {mount["Name"] for mount in container["Mounts"] if mount.get("Name")}
        self._volumes |= {path.name for path in self._state.glob(f"volumes/{VOLUME_PREFIX}*")}
        return found

    def left(self, pids: Iterable[int]) -> dict[str, list[str]]:
        """What there is still, by kind."""
        pids = list(pids)
        containers = self.look(pids)
        with docker_client() as client:
            volumes = {volume["Name"] for volume in client.volumes()["Volumes"] or ()}
        there = list(self._run_folders.rglob("*"))
        return {
            "containers": [f"{found['Names'][0]} ({found['State']})" for found in containers],
            "volumes": sorted(volumes & self._volumes),
            "sockets": [str(path) for path in there if path.is_socket()],
            "run folders": [str(path) for path in there if path.parent == self._run_folders],
            "lock files": [str(path) for name in ("volumes", "servers") for path in self._state.glob(f"{name}/*")],
            "unfinished copies": [str(path) for path in self._out.glob(f"{TEMPORARY_PREFIX}*")],
            "processes": [*_alive(pids), *_contained(self._containers)],
        }


def _alive(pids: Iterable[int]) -> list[str]:
    return [f"server {pid}" for pid in pids if Path(f"/proc/{pid}").exists()]


def _contained(containers: set[str]) -> list[str]:
    """Processes of containers, by their cgroup."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and containers:
            with suppress(OSError):
                cgroups = Path(f"/proc/{entry.name}/cgroup").read_text(encoding="ascii")
                found += [f"pid {entry.name} of {name[:12]}" for name in containers if name in cgroups]
    return found


def verdicts(record: Record) -> list[Verdict]:
    """What must be so."""
    return [
        Verdict("no wrong reply, no lost cell, none twice", not record.errors, f"{len(record.errors)} errors"),
        Verdict("no sign of a bug on the servers' stderr", not record.said, _some(record.said)),
        *(Verdict(f"no {kind} are left", not names, _some(names)) for kind, names in record.left.items()),
    ]


def print_report(record: Record, found: list[Verdict]) -> None:
    """Prints all of it."""
    print(f"{record.kills.total()} kills in {record.seconds:.0f} s: {_counts(record.kills)}")
    print(f"calls in flight at a kill: {_counts(record.caught)}")
    print(f"cells: {_counts(record.cells)}; sessions: {_counts(record.ended)}")
    print(f"grace time: {record.grace:.0f} s")
    for error in record.errors:
        print(f"ERROR {error}")
    for verdict in found:
        print(f"{'PASS' if verdict.passed else 'FAIL'}  {verdict.what}: {verdict.detail or 'none'}")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"


def _some(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
