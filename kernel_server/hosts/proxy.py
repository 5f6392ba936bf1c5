"""The way out for sessions that may reach named hosts only: an HTTP proxy in a process of its own, on a unix socket.

`serve_proxy` starts the process, in which `forwarding` runs; what may be reached is decided here, by pure functions.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from kernel_server.errors import EngineError

HOSTS_VARIABLE = "KERNEL_SERVER_PROXY_HOSTS"
FORWARDING = "kernel_server.hosts.forwarding"
PORTS = (80, 443)  # of a host that is named without one
START_SECONDS = 20.0
END_SECONDS = 2.0
POLL_SECONDS = 0.02


def is_allowed(host: str, port: int, hosts: Sequence[str]) -> bool:
    """Whether a host is named: `example.org` (ports 80 and 443), `example.org:8080`, `*.example.org` (those below it)."""
    return find_named(host, port, hosts) is not None


def find_named(host: str, port: int, hosts: Sequence[str]) -> str | None:
    """The entry of the list that names a host."""
    for named in hosts:
        name, _, its_port = named.rpartition(":") if _has_port(named) else (named, "", "")
        if port not in ((int(its_port),) if its_port else PORTS):
            continue
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return named
    return None


def _has_port(named: str) -> bool:
    return named.count(":") == 1


def is_reachable(address: str, host: str, hosts: Sequence[str]) -> bool:
    """Whether that is what the host's owner may lead to: public addresses, and those that are named themselves.

    Who owns the name of a host could let it be 169.254.169.254, or a service of this machine.
    """
    names = [named.rpartition(":")[0] if _has_port(named) else named for named in hosts]
    return ipaddress.ip_address(address).is_global or address in names or host == "localhost"


@asynccontextmanager
async def serve_proxy(path: Path, hosts: Sequence[str]) -> AsyncIterator[None]:
    """A proxy at a unix socket for the length of the block, or of this process.

    Raises:
        EngineError: it did not start.
    """
    await anyio.Path(path).unlink(missing_ok=True)  # of a server that was killed
    process = await anyio.open_process(
        [sys.executable, "-m", FORWARDING, str(path)],
        env={**os.environ, HOSTS_VARIABLE: ",".join(hosts), **_search_path()},
        cwd="/",
        stdin=subprocess.PIPE,  # its end is the end of the proxy
        stdout=subprocess.DEVNULL,
        stderr=None,
    )
    try:
        with anyio.move_on_after(START_SECONDS):
            while not path.exists() and process.returncode is None:  # noqa: ASYNC110 - another process makes it
                await anyio.sleep(POLL_SECONDS)
        if not path.exists():
            raise EngineError("The proxy for PY_EXEC_NETWORK=allow:… did not start; the server's log says why.")
        yield
    finally:
        with anyio.CancelScope(shield=True):
            assert process.stdin is not None
            await process.stdin.aclose()
            with anyio.move_on_after(END_SECONDS):
                await process.wait()
            if process.returncode is None:
                process.kill()
            await process.aclose()


def _search_path() -> dict[str, str]:
    """Where the process finds modules: where this one does. Never in the current folder, where sessions may put files."""
    return {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry),
        "PYTHONSAFEPATH": "1",
    }
