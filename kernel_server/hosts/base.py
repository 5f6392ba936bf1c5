"""The seam between sessions and the place where their kernels run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kernel_server.packages.environment import Environment

ALLOW = "allow:"

Report = Callable[[str], None]
"""Takes a line for a person who waits: image building, container starting."""


@dataclass(frozen=True)
class HostSettings:
    """The slice of the settings that concerns kernel hosts; sizes in bytes, times in seconds, 0 is no limit.

    Attributes:
        session_max: how many sessions there may be in one host.
        per_host: the same as it was set; 0 where all are in one.
        instance: servers that have the same take over each other's kernel hosts.
        isolation: `standard`, or `strict`: a layer of isolation that is missing is an error.
        runtime: of the engine's runtimes, such as `runsc`; "" is its default.
        network: `none`, `bridge` or `allow:` with names of hosts.
        keep_seconds: how long a host with sessions goes on when its server has gone, for a later one; 0 is not at all.
        fetch_image: whether the image is pulled where it is missing.
    """

    image: str
    preload: list[str]
    session_max: int
    per_host: int
    memory: int
    session_memory: int
    workspace_size: int
    cpus: float
    state_dir: Path
    ca_file: Path | None
    build_network: str
    isolation: str = "standard"
    runtime: str = ""
    network: str = "none"
    instance: str = ""
    keep_seconds: float = 0.0
    fetch_image: bool = True

    @property
    def allowed_hosts(self) -> list[str] | None:
        """The only hosts that sessions reach, by a proxy; None where there is no such list."""
        if not self.network.startswith(ALLOW):
            return None
        return [host for host in self.network.removeprefix(ALLOW).split(",") if host]


@dataclass(frozen=True)
class HostDescription:
    """What a started kernel host says of itself.

    Attributes:
        engine: `docker` or `local`.
        isolation: one line for people and models.
        python: version inside, such as `3.13.5`.
        preloaded: modules that every kernel has imported already.
        image: reference of the image, or "" without one.
        limits: one line, or "".
        hints: sentences about the limits of a session, by what an error says when one is hit (its name, or `[Errno n]`).
        printed_hints: the same by what programs print.
        memory: limit of all sessions together as it is written in settings, or "".
        network: one line.
    """

    engine: str
    isolation: str
    python: str
    preloaded: list[str]
    image: str
    limits: str
    memory: str
    network: str
    hints: dict[str, str] = field(default_factory=dict)
    printed_hints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Launched:
    """A kernel that has bound its sockets.

    Attributes:
        pid: its process id as the kernel host sees it.
        connection: jupyter_client's connection info (transport ipc).
        workspace: the session's folder as the kernel sees it.
    """

    pid: int
    connection: dict[str, Any] = field(repr=False)
    workspace: str


@dataclass(frozen=True)
class SessionRecord:
    """What a later server needs to go on with a session.

    Attributes:
        launched: its kernel.
        generation: the kernel's number in the session.
        begun, last_used: monotonic time, which all processes of a machine share until it is started anew.
        submitted: how many cells it has taken.
        execution_count: number of the last of them that came to its end.
        origin: of what it was branched, and its checkpoints: see `sessions.checkpoints`.
        loss: what the next result has to tell of the end of an earlier kernel; "" for nothing.
        lost: that kernel's number.
    """

    session_id: str
    launched: Launched
    generation: int
    begun: float
    last_used: float
    submitted: int
    loss: str
    lost: int = 0
    execution_count: int = 0
    origin: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Exceeded:
    """A limit for which a session was stopped.

    Attributes:
        what: `memory` of the container, `workspace` on disk, or a folder in memory that all sessions share, which is nearly full.
        used: what the session held of it.
        limit: how much there is; for the workspace, how much a session may have.
        unit: of both: `bytes` or `files`.
    """

    what: str
    used: int
    limit: int
    unit: str = "bytes"


@dataclass(frozen=True)
class Death:
    """A kernel process has ended.

    Attributes:
        exit_code: its exit code, or None if a signal ended it.
        signal: the signal's number, or None.
        out_of_memory: the container's memory limit killed something since the last death.
        exceeded: the limit for which the kernel host ended it.
        checkpoints: names of the session's checkpoints that are still there; None if that was not told.
        cut_off: it was ended because nothing came through its connections any more.
    """

    session_id: str
    pid: int
    exit_code: int | None
    signal: int | None
    out_of_memory: bool
    exceeded: Exceeded | None = None
    checkpoints: tuple[str, ...] | None = None
    cut_off: bool = False


@dataclass(frozen=True)
class Staged:
    """What a session's path was when it was copied into staging; sizes in bytes.

    Attributes:
        skipped: the first names of what was left out.
    """

    kind: str
    size: int
    files: int
    skipped: list[str]
    skipped_count: int


@dataclass(frozen=True)
class Usage:
    """What a session uses: bytes of memory (shared pages in parts), seconds of CPU time so far, processes."""

    memory: int
    cpu_seconds: float
    processes: int


@dataclass(frozen=True)
class Kept:
    """What a checkpoint has of the workspace: how many files, and how many bytes had to be copied."""

    files: int
    bytes_copied: int


@dataclass(frozen=True)
class Restored:
    """What going back to a checkpoint did to files.

    Attributes:
        changed, removed, created: the first of the paths that were brought back, taken away, or made again.
        count: of all of them.
        lost: files that had been open, and could not be opened again.
    """

    changed: list[str]
    removed: list[str]
    created: list[str]
    count: int
    lost: list[str]


@dataclass(frozen=True)
class FoundFile:
    """A file of a workspace: its path in it, its size in bytes, when it was modified (seconds since 1970)."""

    path: str
    size: int
    modified: float


@dataclass(frozen=True)
class InstalledPackage:
    """A package that was installed just now.

    Attributes:
        name: canonical (PEP 503).
        modules: what can be imported of it.
        preloaded: some of that is in every kernel from the start.
    """

    name: str
    modules: list[str]
    preloaded: bool


class KernelHost(Protocol):
    """A place for kernels. It is an async context manager's value: entering starts it, leaving ends everything in it."""

    description: HostDescription

    async def spawn(self, session_id: str, *, warm: bool = False) -> Launched:
        """Starts the session's kernel, and makes workspace and UID of a new session.

        Args:
            warm: it takes longer to be ready, and its first cell less.

        Raises:
            HostLost: the host is gone.
            KernelError: the kernel did not start.
        """

    async def signal(self, session_id: str, signum: int) -> None:
        """Sends a signal to the kernel's process group."""

    async def kill(self, session_id: str) -> None:
        """Ends every process of the session; its files stay."""

    async def clear(self, session_id: str) -> None:
        """Ends every process of the session and removes all it owns."""

    async def checkpoint(self, session_id: str, name: str) -> Kept:
        """Keeps the session's kernel and workspace as they are, under a name of letters and digits.

        Raises:
            CheckpointError: that is not possible; the message says what stands in the way.
        """

    async def rollback(self, session_id: str, name: str) -> tuple[Launched, Restored]:
        """Starts the session's kernel, which has none, as it was at a checkpoint, and brings its files back.

        Raises:
            CheckpointError: there is no such checkpoint any more.
        """

    async def branch(self, session_id: str, name: str, branch_id: str) -> Launched:
        """Starts the kernel of a new session as another session was at a checkpoint, with a copy of its workspace.

        Raises:
            CheckpointError: that is not possible.
        """

    async def drop(self, session_id: str, name: str) -> None:
        """Removes a checkpoint, or gives up one that is on its way."""

    async def checkpoints(self, session_id: str) -> set[str]:
        """Names of the session's checkpoints that are still there.

        Raises:
            KernelError: it cannot be told.
        """

    async def usage(self, session_id: str) -> Usage:
        """What the session uses now.

        Raises:
            KernelError: it cannot be told.
        """

    async def answers(self) -> bool:
        """Whether it answers just now; one that is paused does not."""

    async def is_short_of_memory(self) -> bool:
        """Whether so much of its limit, or of the machine's memory, is in use that nothing should be kept in reserve.

        Raises:
            HostLost: the host is gone.
        """

    def remember(self, record: SessionRecord) -> None:
        """Writes down what a later server needs to go on with a session; until it is cleared.

        Raises:
            OSError: it could not be written.
        """

    async def hold(self, *, sessions: bool) -> None:
        """Says how long the host is to go on when its server has gone.

        Args:
            sessions: whether there is something in it that a later server could go on with.
        """

    def keep(self) -> bool:
        """Leaves the host to a later server when its block is left; False if none would take it over."""

    def own(self) -> None:
        """A host of an earlier server: its sessions go on here. Until then, it stays when its block is left."""

    async def kernels(self) -> dict[str, Death | int]:
        """What became of the kernel of each session: how it ended, or its process id.

        Raises:
            KernelError: it cannot be told.
        """

    def deaths(self) -> AsyncIterator[Death]:
        """Deaths of kernels as they happen; ends when the host is gone. For one reader."""

    async def describe(self, session_id: str, path: str) -> tuple[str, int]:
        """Kind (`file` or `folder`) and size in bytes of a path in the workspace ("" session: the shared folder).

        Raises:
            FileError: it is missing or refused.
        """

    async def list_files(self, session_id: str, path: str) -> tuple[list[FoundFile], int]:
        """The files beneath a folder of the workspace, and how many more there are.

        Raises:
            FileError: it is missing or refused.
        """

    async def edit(self, session_id: str, path: str, content: str, old: str) -> bool:
        """Writes a text file or replaces `old` in it; True if the file is new."""

    async def packages(self, session_id: str) -> list[tuple[str, str]]:
        """Name and version of what a kernel can import."""

    async def environment(self, session_id: str) -> Environment:
        """For which Python packages of a session have to be, and what it has.

        Raises:
            PackageError: it cannot be told.
        """

    async def install(
        self, session_id: str, make_tar: Callable[[int], Iterator[bytes]], name: str
    ) -> list[InstalledPackage]:
        """Installs wheels in a session: `make_tar(uid)` is a tar stream of the folder `name` with nothing else in it.

        Raises:
            PackageError: they could not be installed.
        """

    async def put(self, session_id: str, path: str, make_tar: Callable[[int], Iterator[bytes]], name: str) -> str:
        """Brings one tree in: `make_tar(uid)` is a tar stream of `name` and what is beneath it; returns where it went.

        Nothing of it appears at `path` before all of it has arrived.
        """

    def take(
        self, session_id: str, path: str, max_bytes: int
    ) -> AbstractAsyncContextManager[tuple[Staged, Iterator[bytes]]]:
        """Takes one file or folder out: what it is, and a tar stream of it to be read in a worker thread."""


class KeptHost(Protocol):
    """A kernel host that an earlier server with the same settings has left."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def sessions(self) -> list[SessionRecord]:
        """Those that it had, as it was seen last."""

    def take_over(self, report: Report) -> AbstractAsyncContextManager[KernelHost]:
        """The host, for the length of the block.

        Raises:
            KernelServerError: it cannot be had.
        """


class KernelHosts(Protocol):
    """Starts kernel hosts of one kind for one server."""

    def kept(self) -> Sequence[KeptHost]:
        """What earlier servers with the same settings have left; no server that lives has it. Fast."""

    def start(self, report: Report) -> AbstractAsyncContextManager[KernelHost]:
        """A kernel host for the length of the block.

        Raises:
            KernelServerError: it cannot be had.
        """

    def whereabouts(self, session_id: str) -> str:
        """Which other server has a session, or could go on with it: a sentence, or ""."""

    def renew(self) -> Callable[[], Awaitable[None]]:
        """Hosts that are started from now on share nothing with those before.

        Returns: what removes the things that those shared; for when none of them is there any more.
        """
