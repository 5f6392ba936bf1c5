"""The walls around a session beside its user id: which there are here, and how a process gets them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import landlock, seccomp

WALLS = ("seccomp", "landlock")


@dataclass(frozen=True)
class Walls:
    """What each kernel of this host is restricted by.

    Attributes:
        seccomp: whether system calls are filtered.
        landlock: ABI of Landlock, by which access to files, TCP and signals is restricted; 0 where it is not.
        internet: which internet sockets there are: `none`, `tcp` or `full`.
        tcp_ports: to which TCP may connect, without any other TCP; None is no restriction.
    """

    seccomp: bool
    landlock: int
    internet: str
    tcp_ports: tuple[int, ...] | None

    @classmethod
    def here(cls, wanted: list[str], internet: str, tcp_ports: list[int] | None) -> Walls:
        """Those that are wanted and that Linux has."""
        filters = "seccomp" in wanted and seccomp.is_possible()
        if filters:
            seccomp.program(os.uname().machine, internet)  # before the fork: it is kept
        return cls(
            filters,
            landlock.abi() if "landlock" in wanted else 0,
            internet,
            None if tcp_ports is None else tuple(tcp_ports),
        )

    def raise_around(self, own: list[str], shared: str) -> None:
        """Restricts this process, which has one thread, and all that it starts; for good. See `landlock.restrict`.

        Raises:
            OSError: it could not be done; the process must not become a session.
        """
        if self.landlock:
            landlock.restrict(own, os.path.realpath(shared), self.tcp_ports)
        if self.seccomp:
            seccomp.install(self.internet)

    def narrow(self, own: list[str], shared: str) -> None:
        """Restricts a process that has the walls already, as `raise_around`, to less of what they leave it.

        Raises:
            OSError: it could not be done: Landlock has 16 layers.
        """
        if self.landlock:
            landlock.restrict(own, os.path.realpath(shared), self.tcp_ports)


def layers(walls: Walls) -> dict[str, Any]:
    """For the server: these walls, and what the engine has given to this process, as Linux says it (proc(5), status)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        status = dict(line.split(":", 1) for line in file)
    return {
        "seccomp": walls.seccomp,
        "landlock": walls.landlock,
        "engine_seccomp": status.get("Seccomp", "0").strip() == "2",
        "no_new_privs": status.get("NoNewPrivs", "0").strip() == "1",
        "read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
    }
