"""What a container is given, and what is told of it to people and models."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_server.hosts.base import HostDescription, HostSettings
from kernel_server.hosts.controlled import LEASE_SECONDS
from kernel_server.hosts.engine import ContainerSpec
from kernel_server.hosts.orphans import RUN_DIR_LABEL
from kernel_server.text import human_size

RUN_DIR = "/run/kernel_server"
WORKSPACE_DIR = "/workspace"
SHARED_DIR = "/shared"
PYTHON = "/opt/kernel_server/venv/bin/python"
KERNEL_HOST = "/opt/kernel_server/kernel_host"
CA_BUNDLE = "/opt/kernel_server/ca-bundle.crt"
# What kernel_host needs to make a session: become its UID, give it its folder, end its processes.
CAPABILITIES = ("SETUID", "SETGID", "CHOWN", "KILL")
PROCESSES_PER_SESSION = 256  # threads count too; a kernel has about 12
OPEN_FILES_PER_SESSION = 4_096
SHM_BYTES = 256 << 20
TMP_BYTES = 256 << 20


@dataclass(frozen=True)
class Place:
    """Where a container reaches the server, and how it knows it.

    Attributes:
        host_uid: the server's UID inside.
        volume: what it shares with others, or "".
        owner: digest of the token.
    """

    run_dir: Path
    host_uid: int
    volume: str
    owner: str


def container_spec(
    settings: HostSettings, image: str, place: Place, name: str, first_uid: int, uid_count: int
) -> ContainerSpec:
    limits = {"nproc": PROCESSES_PER_SESSION, "nofile": OPEN_FILES_PER_SESSION}
    if settings.session_memory:
        limits["data"] = settings.session_memory
    if settings.workspace_size:
        limits["fsize"] = settings.workspace_size
    config = {
        "run_dir": RUN_DIR,
        "workspace_dir": WORKSPACE_DIR,
        "shared_volume": SHARED_DIR if place.volume else "",
        "isolation": "uid",
        "host_uid": place.host_uid,
        "first_uid": first_uid,
        "uid_count": uid_count,
        "preload": settings.preload,
        "processors": settings.cpus,
        "workspace_bytes": settings.workspace_size,
        "owner": place.owner,
        "lease_seconds": LEASE_SECONDS,
        "limits": limits,
        # There is no network: pip fails at once instead of after five tries.
        "environment": {"PIP_RETRIES": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    }
    return ContainerSpec(
        name=name,
        image=image,
        command=(PYTHON, "-s", KERNEL_HOST),
        environment={"KERNEL_HOST_CONFIG": json.dumps(config)},
        labels={RUN_DIR_LABEL: str(place.run_dir), "kernel_server.server_pid": str(os.getpid())},
        capabilities=CAPABILITIES,
        binds={str(place.run_dir): RUN_DIR},
        volumes={WORKSPACE_DIR: "", **({SHARED_DIR: place.volume} if place.volume else {})},
        tmpfs={"/tmp": f"rw,nosuid,nodev,size={TMP_BYTES},mode=1777"},  # noqa: S108 - the container's own
        memory=settings.memory,
        cpus=settings.cpus,
        pids=PROCESSES_PER_SESSION * settings.session_max + 64,
        shm_bytes=SHM_BYTES,
    )


def describe(hello: dict[str, Any], settings: HostSettings, image: str) -> HostDescription:
    limits = [f"{human_binary(settings.memory)} memory in all" if settings.memory else ""]
    if settings.session_memory:
        limits.append(f"{human_binary(settings.session_memory)} for one process")
    if settings.workspace_size:
        limits.append(f"{human_binary(settings.workspace_size)} of files")
    if settings.cpus:
        limits.append(f"{settings.cpus:g} CPUs")
    return HostDescription(
        engine="docker",
        isolation=f"container{_own(settings.per_host)} with a read-only system and no capabilities, a user id of its own per session",
        python=str(hello["python"]),
        preloaded=[str(name) for name in hello["preloaded"]],
        image=image,
        limits=", ".join(filter(None, limits)),
        memory=human_binary(settings.memory) if settings.memory else "",
        network="none",
        hints=_hints(settings),
    )


def _own(per_host: int) -> str:
    return {0: "", 1: " of its own"}.get(per_host, f" for at most {per_host} sessions")


def _hints(settings: HostSettings) -> dict[str, str]:
    processes = f"A session may have {PROCESSES_PER_SESSION} processes and threads at a time."
    hints = {
        "[Errno 11]": processes,
        "can't start new thread": processes,
        "[Errno 24]": f"A process may have {OPEN_FILES_PER_SESSION} files open at a time.",
        "[Errno 28]": f"/tmp and /dev/shm hold {human_binary(TMP_BYTES)} each, for all sessions.",  # noqa: S108
    }
    if settings.session_memory:
        limit = human_binary(settings.session_memory)
        hints["MemoryError"] = f"A process may use {limit} of memory (PY_EXEC_SESSION_MEMORY)."
    if settings.workspace_size:
        limit = human_binary(settings.workspace_size)
        hints["[Errno 27]"] = f"The files of a session may take {limit} (PY_EXEC_WORKSPACE_SIZE)."
    return hints


def human_binary(size: int) -> str:
    """A limit as it is written in settings, such as `4g`."""
    for unit, letter in ((30, "g"), (20, "m"), (10, "k")):
        if size >= 1 << unit and not size % (1 << unit):
            return f"{size >> unit}{letter}"
    return human_size(size)
