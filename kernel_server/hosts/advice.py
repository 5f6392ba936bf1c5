"""What to tell a person whose Docker engine cannot be reached: pure looking around, no docker-py."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def why_unreachable(address: str, reason: str) -> tuple[str, str]:
    """Why there is no connection, and what to do: a sentence, and some more.

    Args:
        address: as in DOCKER_HOST.
        reason: the text of the error; it is shown, never matched.
    """
    if address.startswith("unix://"):
        return _socket_advice(Path(address.removeprefix("unix://")), reason)
    scheme, separator, _ = address.partition("://")
    if not separator or scheme not in {"tcp", "ssh", "http", "https", "npipe"}:
        return (
            f"DOCKER_HOST={address!r} is not an address of a Docker engine.",
            (
                "Accepted: unix:///path/to/docker.sock, tcp://host:2376 or ssh://user@host; unset it to use the engine "
                "of this machine."
            ),
        )
    return (
        f"The Docker engine of DOCKER_HOST={address} does not answer: {reason}.",
        "Check that it runs and is reachable from here, or unset DOCKER_HOST to use the engine of this machine.",
    )


def _socket_advice(socket: Path, reason: str) -> tuple[str, str]:
    start = (
        "Start it (`sudo systemctl start docker`; Docker Desktop: start the application; in a checkout of this "
        "project, as root: `make engine`), or set DOCKER_HOST to one that runs."
    )
    try:
        is_socket = stat.S_ISSOCK(socket.stat().st_mode)
    except PermissionError:
        return _permission_advice(socket)
    except (FileNotFoundError, NotADirectoryError):
        return (
            f"There is no Docker engine at {socket}.",
            f"Install Docker (https://docs.docker.com/engine/install/) if this machine has none. {start}",
        )
    if not is_socket:
        return f"{socket} is not a socket, so no Docker engine can be there.", "Check DOCKER_HOST."
    if not os.access(socket, os.R_OK | os.W_OK):
        return _permission_advice(socket)
    return f"The Docker engine at {socket} does not answer, it is probably not running ({reason}).", start


def _permission_advice(socket: Path) -> tuple[str, str]:
    return (
        f"You may not talk to the Docker engine at {socket}.",
        (
            "Join its group and log in again: `sudo usermod -aG docker $USER`. Members of that group can become root on "
            "this machine; rootless Docker is the alternative (https://docs.docker.com/engine/security/rootless/)."
        ),
    )
