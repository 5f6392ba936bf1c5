"""What a container is given, and what is told of it to people and models."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_server.errors import IsolationIncomplete
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
CAPABILITY_NUMBERS = {"CHOWN": 0, "KILL": 5, "SETGID": 6, "SETUID": 7}  # linux/capability.h
# How libraries and programs say that they reach nobody.
NETWORK_ERRORS = (
    *("gaierror", "URLError", "ConnectionError", "ConnectError", "MaxRetryError", "ClientConnectorDNSError"),
    *("ProxyError", "Tunnel connection failed"),
    *("NewConnectionError", "NameResolutionError", "[Errno 101]", "[Errno -2]", "[Errno -3]", "name resolution"),
)
NETWORK_FAILURES = (
    *("Tunnel connection failed: 403", "tunnel failed, response 403", "among the hosts of PY_EXEC_NETWORK"),
    *("Temporary failure in name resolution", "Could not resolve host", "Name or service not known"),
    "Network is unreachable",
)
NO_NETWORK = "Sessions have no network (PY_EXEC_NETWORK=none). cp_in brings files in."
PROXY_PORT = 3128  # on 127.0.0.1 in the container, as proxies usually have it
LANDLOCK_ABI = 6  # restricts files, TCP, signals and abstract sockets
PROCESSES_PER_SESSION = 256  # threads count too; a kernel has about 12
OPEN_FILES_PER_SESSION = 4_096
# Of /tmp and of /dev/shm, for all sessions. So many files can be looked at while memory is short, in half a second.
MEMORY_FOLDER_BYTES, MEMORY_FOLDER_FILES = 256 << 20, 1 << 14


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
        **_internet(settings),
        "lease_seconds": LEASE_SECONDS,
        "limits": limits,
        "environment": _environment(settings),
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
        tmpfs=dict.fromkeys(("/tmp", "/dev/shm"), _memory_folder()),  # noqa: S108 - the container's own
        memory=settings.memory,
        cpus=settings.cpus,
        pids=PROCESSES_PER_SESSION * settings.session_max + 64,
        network="bridge" if settings.network == "bridge" else "none",
        runtime=settings.runtime,
    )


def _memory_folder() -> str:
    """Options of a file system in memory that all sessions have: tmpfs(5)."""
    return f"rw,nosuid,nodev,size={MEMORY_FOLDER_BYTES},nr_inodes={MEMORY_FOLDER_FILES},mode=1777"


def _internet(settings: HostSettings) -> dict[str, Any]:
    """Without a network there is the loopback device, which all sessions of a container share: no wall is between them."""
    proxy = PROXY_PORT if settings.allowed_hosts is not None else 0
    if settings.network == "bridge" or settings.per_host == 1:
        return {"internet": "full", "tcp_ports": None, "proxy_port": proxy}
    return {"internet": "tcp" if proxy else "none", "tcp_ports": [proxy] if proxy else [], "proxy_port": proxy}


def _environment(settings: HostSettings) -> dict[str, str]:
    variables = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if settings.network == "none":
        variables["PIP_RETRIES"] = "0"  # pip fails at once instead of after five tries
        if settings.allowed_hosts is None:
            variables["UV_HTTP_RETRIES"] = "0"  # as pip; UV_OFFLINE would have it look for packages in its cache
    if settings.allowed_hosts is not None:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            variables[name] = f"http://127.0.0.1:{PROXY_PORT}"
        variables["no_proxy"] = variables["NO_PROXY"] = "localhost,127.0.0.1"
    return variables


def describe(hello: dict[str, Any], settings: HostSettings, image: str) -> HostDescription:
    limits = [f"{human_binary(settings.memory)} memory in all" if settings.memory else ""]
    if settings.session_memory:
        limits.append(f"{human_binary(settings.session_memory)} for one process")
    if settings.workspace_size:
        limits.append(f"{human_binary(settings.workspace_size)} of files")
    if settings.cpus:
        limits.append(f"{settings.cpus:g} CPUs")
    missing = missing_layers(hello)
    if missing and settings.isolation == "strict":
        raise IsolationIncomplete(missing)
    hint = _network_hint(settings)
    return HostDescription(
        engine="docker",
        isolation=_isolation(settings, hello, missing),
        python=str(hello["python"]),
        preloaded=[str(name) for name in hello["preloaded"]],
        image=image,
        limits=", ".join(filter(None, limits)),
        memory=human_binary(settings.memory) if settings.memory else "",
        network=_network(settings),
        hints={**_hints(settings), **dict.fromkeys(NETWORK_ERRORS, hint)},
        printed_hints=dict.fromkeys(NETWORK_FAILURES, hint),
    )


def _isolation(settings: HostSettings, hello: dict[str, Any], missing: list[str]) -> str:
    walls = ["a read-only system", "no capabilities"]
    layers = hello.get("layers", {})
    if layers.get("seccomp"):
        walls.append("filtered system calls")
    if layers.get("landlock"):
        walls.append(f"Landlock (ABI {layers['landlock']})")
    runtime = f" of the runtime {settings.runtime}" if settings.runtime else ""
    text = f"container{_own(settings.per_host)}{runtime} with {', '.join(walls)}; a user id of its own per session"
    return f"{text}. MISSING on this machine: {'; '.join(missing)}" if missing else text


def missing_layers(hello: dict[str, Any]) -> list[str]:
    """What a kernel host says that it lacks of the layers that each container and session is to have, for people."""
    layers = hello.get("layers", {})
    expected = sum(1 << CAPABILITY_NUMBERS[name] for name in CAPABILITIES)
    found = {
        "a read-only system": layers.get("read_only"),
        "no-new-privileges": layers.get("no_new_privs"),
        "the engine's seccomp profile": layers.get("engine_seccomp"),
        "the filter of system calls (x86_64 and aarch64 have it)": layers.get("seccomp"),
        "Landlock (Linux 6.12 or newer has all that is used of it)": layers.get("landlock", 0) >= LANDLOCK_ABI,
        "the right capabilities": int(str(hello.get("capabilities", "0")), 16) == expected,
    }
    return [name for name, there in found.items() if not there]


def _network(settings: HostSettings) -> str:
    if settings.allowed_hosts is not None:
        return f"only {', '.join(settings.allowed_hosts) or 'no host at all'}, by the HTTP proxy that HTTPS_PROXY names (PY_EXEC_NETWORK)"
    if settings.network != "none":
        return f"{settings.network} (PY_EXEC_NETWORK)"
    return "none, but for 127.0.0.1" if settings.per_host == 1 else "none"


def _network_hint(settings: HostSettings) -> str:
    if settings.allowed_hosts is not None:
        return f"Sessions reach {_network(settings)}. cp_in brings files in."
    return NO_NETWORK if settings.network == "none" else ""


def _own(per_host: int) -> str:
    return {0: "", 1: " of its own"}.get(per_host, f" for at most {per_host} sessions")


def _hints(settings: HostSettings) -> dict[str, str]:
    processes = f"Limit: A session may have {PROCESSES_PER_SESSION} processes and threads at a time."
    hints = {
        "[Errno 11]": processes,
        "can't start new thread": processes,
        "[Errno 24]": f"Limit: A process may have {OPEN_FILES_PER_SESSION} files open at a time.",
        "[Errno 28]": f"Limit: /tmp and /dev/shm hold {human_binary(MEMORY_FOLDER_BYTES)} each, for all sessions.",
    }
    if settings.session_memory:
        limit = human_binary(settings.session_memory)
        hints["MemoryError"] = f"Limit: A process may use {limit} of memory (PY_EXEC_SESSION_MEMORY)."
    if settings.workspace_size:
        limit = human_binary(settings.workspace_size)
        hints["[Errno 27]"] = f"Limit: The files of a session may take {limit} (PY_EXEC_WORKSPACE_SIZE)."
    return hints


def human_binary(size: int) -> str:
    """A limit as it is written in settings, such as `4g`."""
    for unit, letter in ((30, "g"), (20, "m"), (10, "k")):
        if size >= 1 << unit and not size % (1 << unit):
            return f"{size >> unit}{letter}"
    return human_size(size)
