"""What the server tells the kernel host at its start, and the folders that follow from it."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass, field

from .walls import WALLS

CONFIG_VARIABLE = "KERNEL_HOST_CONFIG"


@dataclass(frozen=True)
class Config:
    """One kernel host's configuration; every path is as seen by this process.

    Attributes:
        run_dir: where the sockets are; shared with the server, closed to sessions.
        workspace_dir: holds `sessions/`, `private/`, `shared/` and `.staging/`.
        shared_volume: holds `files/` and `.staging/` of a shared folder that other containers have, too; "" for none.
        isolation: `uid` (root in a container: a UID for each session) or `process_group` (no isolation).
        host_uid: UID of the server's user, as this process sees it; owns what lies in `run_dir`.
        first_uid, uid_count: the range of session UIDs that belongs to this kernel host alone.
        preload: modules to import before the first fork; missing ones are passed over.
        processors: how many the sessions may use together; 0 is all.
        branches: how many a session and those that were branched from it may have at a time, where Landlock is.
        workspace_bytes: how much the files of a session may take; 0 is no limit.
        supervise: whether to watch what the sessions use together; without it, tests show what they do to each other.
        walls: what is to restrict sessions beside their UID, as far as Linux has it: see `walls`. Without isolation there are none.
        internet: which internet sockets a session may have: `none`, `tcp` or `full`.
        tcp_ports: the only ones to which a session may connect, where Linux has Landlock for TCP; None: no restriction.
        proxy_port: on 127.0.0.1, from where connections are passed on to the socket `proxy` in `run_dir`; 0 is none.
        owner: SHA-256 (hexadecimal) of the token that a server shows; one that does not know it is refused.
        lease_seconds: how long to go on when no server holds the control socket, until one says otherwise.
        limits: resource limits of a session by name (`nproc`, `nofile`, `fsize`, `data`), in the units of setrlimit(2).
        environment: variables set for every session.
    """

    run_dir: str
    workspace_dir: str
    shared_volume: str = ""
    isolation: str = "uid"
    host_uid: int = 0
    first_uid: int = 20_000
    uid_count: int = 1_000
    preload: list[str] = field(default_factory=list)
    processors: float = 0.0
    branches: int = 16
    workspace_bytes: int = 0
    supervise: bool = True
    walls: list[str] = field(default_factory=lambda: list(WALLS))
    internet: str = "full"
    tcp_ports: list[int] | None = None
    proxy_port: int = 0
    owner: str = ""
    lease_seconds: float = 10.0
    limits: dict[str, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls) -> Config:
        """Reads the configuration and takes it out of the environment, so that no session inherits it.

        /proc/self/environ shows what a program was started with: that is overwritten, too.
        """
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        value = os.environb[CONFIG_VARIABLE.encode()]
        if address := libc.getenv(CONFIG_VARIABLE.encode()):
            ctypes.memset(address, 0, len(value))
        del os.environb[CONFIG_VARIABLE.encode()]
        return cls(**json.loads(value))

    @property
    def sessions_dir(self) -> str:
        return f"{self.workspace_dir}/sessions"

    @property
    def private_dir(self) -> str:
        """Per session: temporary files, caches and configuration that do not belong in the workspace."""
        return f"{self.workspace_dir}/private"

    @property
    def waiting_dir(self) -> str:
        """Where workspaces are that no session has yet."""
        return f"{self.workspace_dir}/.waiting"

    @property
    def shared_dir(self) -> str:
        return f"{self.shared_volume}/files" if self.shared_volume else f"{self.workspace_dir}/shared"

    @property
    def staging_dir(self) -> str:
        """Where the engine's archive API puts and takes files; 0700, so no session can plant anything in it."""
        return f"{self.workspace_dir}/.staging"

    @property
    def shared_staging_dir(self) -> str:
        """The same for the shared folder: what is staged moves to its place, within one file system."""
        return f"{self.shared_volume or self.workspace_dir}/.staging"
