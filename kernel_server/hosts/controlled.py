"""A `KernelHost` on top of a control connection; `docker.py` and `local.py` start one and move its bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from kernel_server import records
from kernel_server.errors import CheckpointError, FileError, HostLost, KernelError, PackageError
from kernel_server.hosts.base import (
    Death,
    Exceeded,
    FoundFile,
    HostDescription,
    InstalledPackage,
    Kept,
    Launched,
    Restored,
    SessionRecord,
    Staged,
    Usage,
)
from kernel_server.hosts.control import PULSE_SECONDS, Control, ControlFailed, ControlRefused, ControlSaid
from kernel_server.hosts.handles import Handles
from kernel_server.hosts.rundir import RunFolder, parent_folders, read_record, run_folders
from kernel_server.packages.environment import Environment, read_environment
from kernel_server.text import one_line, session_says

logger = logging.getLogger(__name__)

# kernel_host ends a helper after 900 s; a copy of many GB may take that long.
TRANSFER_SECONDS = 930.0
INSTALL_SECONDS = 330.0  # kernel_host gives up after 300 s
MAX_SAID = 1_000  # characters of what programs in a session say
OOM_SECONDS = 2.0  # the kernel kills several in one go: a SIGKILL so soon after is one of them
MOST_OF_LIMIT, LEAST_OF_MACHINE = 0.75, 0.1  # of memory: in use and available, before it is called short
SIGNATURE_SCHEME = "hmac-sha256"
LEASE_SECONDS = 10.0  # how long a host goes on whose server was killed, unless it is told otherwise
MISSING = (
    " The server's folder {path} has been removed. Kernels that run go on, new ones cannot be started: copy out what is "
    "needed, then call reset."
)
MISREAD = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)  # where an answer has another form
_RECORD = re.compile(r"session-([0-9a-z]+)")

T = TypeVar("T")


@dataclass(frozen=True)
class Owner:
    """Who a kernel host belongs to: whoever knows the token."""

    token: str

    @classmethod
    def new(cls) -> Owner:
        """One that nobody else knows."""
        return cls(secrets.token_hex(32))

    @property
    def digest(self) -> str:
        """What the kernel host is told: it is readable where the token must not be (`docker inspect`)."""
        return hashlib.sha256(self.token.encode()).hexdigest()


class Archive(Protocol):
    """Moves tar streams to and from the staging folder; called in worker threads."""

    def put(self, folder: str, tar: Iterator[bytes]) -> None:
        """Unpacks a stream beneath `folder`."""

    def get(self, path: str) -> Iterator[bytes]:
        """A tar stream of `path`."""


class ControlledHost:
    """Speaks the control protocol; see `KernelHost` for the methods."""

    def __init__(
        self,
        control: Control,
        folder: RunFolder,
        archive: Archive,
        description: HostDescription,
        keep_seconds: float = 0.0,
    ) -> None:
        self.description = description
        self._control = control
        self.folder = folder
        self._keep_seconds = keep_seconds
        self._lease = 0.0  # as it was told last
        self._archive = archive
        self._handles = Handles()
        self._limiter = anyio.CapacityLimiter(8)  # engine calls at a time
        self._oom_kills = 0
        self._oom_until = 0.0

    async def spawn(self, session_id: str, *, warm: bool = False) -> Launched:
        try:
            return await self._launch("spawn", session_id, session=self._handles.of(session_id), warm=warm)
        except (ControlRefused, ControlFailed) as error:
            raise KernelError(f"The kernel did not start: {error}{self._what_is_missing()}") from error

    async def _launch(self, op: str, session_id: str, **arguments: Any) -> Launched:
        """Asks for a kernel of a session, and hands over what only its own process is to know."""
        launched, _ = await self._launch_and_read(op, session_id, dict, **arguments)
        return launched

    async def _launch_and_read(
        self, op: str, session_id: str, read: Callable[[dict[str, Any]], T], **arguments: Any
    ) -> tuple[Launched, T]:
        key = secrets.token_hex(32)

        def read_both(told: dict[str, Any]) -> tuple[Launched, T]:
            return self._launched(told, session_id, key), read(told)

        with self._handed({"session_id": session_id, "key": key}) as name:
            return await self._ask(op, read_both, secrets=name, **arguments)

    @contextmanager
    def _handed(self, content: dict[str, str]) -> Iterator[str]:
        """The name of a file in the run folder with what must not enter the kernel host; there for the length of the block.

        Raises:
            ControlFailed: it cannot be written.
        """
        name = secrets.token_hex(16)
        path = self.folder.path / name
        try:
            try:
                with open(path, "xb") as file:  # in a folder that nobody else can enter
                    file.write(json.dumps(content).encode())
            except OSError as error:
                raise ControlFailed(f"the server's folder takes no files ({error.strerror})") from error
            yield name
        finally:
            path.unlink(missing_ok=True)

    def _launched(self, told: dict[str, Any], session_id: str, key: str) -> Launched:
        connection = {
            "transport": "ipc",
            "ip": str(self.folder.path / told["ip"]),
            "key": key,
            "signature_scheme": SIGNATURE_SCHEME,
            "shell_port": 1,
            "iopub_port": 2,
            "stdin_port": 3,
            "control_port": 4,
            "hb_port": 5,
        }
        return Launched(int(told["pid"]), connection, f"{self._control.hello['sessions_dir']}/{session_id}")

    async def signal(self, session_id: str, signum: int) -> None:
        await self._kernel_request("signal", dict, session=self._handles.of(session_id), signum=signum)

    async def kill(self, session_id: str) -> None:
        await self._kernel_request("kill", dict, session=self._handles.of(session_id))

    async def clear(self, session_id: str) -> None:
        self.folder.remove(_record_name(session_id))
        await self._kernel_request("clear", dict, session=self._handles.of(session_id))
        self._handles.forget(session_id)

    def remember(self, record: SessionRecord) -> None:
        if self._keep_seconds:
            self.folder.write(_record_name(record.session_id), asdict(record))

    async def hold(self, *, sessions: bool) -> None:
        seconds = self._keep_seconds if sessions and self._keep_seconds else LEASE_SECONDS
        if seconds != self._lease:
            await self._kernel_request("hold", dict, lease_seconds=seconds)
            self._lease = seconds

    def keep(self) -> bool:
        self.folder.kept = bool(self._keep_seconds)
        return self.folder.kept

    def own(self) -> None:
        self.folder.kept = False

    async def kernels(self) -> dict[str, Death | int]:
        for path in self.folder.outer.iterdir():  # what an earlier server has left, also if it cannot be read
            if match := _RECORD.fullmatch(path.name):
                self._handles.of(match[1])
        self._oom_kills, kernels = await self._kernel_request("list", self._kernels)
        return kernels

    def _kernels(self, told: dict[str, Any]) -> tuple[int, dict[str, Death | int]]:
        kernels = {
            self._handles.session_id(str(found["session"])): found["pid"] or self._death(found["death"])
            for found in told["sessions"]
        }
        return int(told["oom_kills"]), kernels

    async def checkpoint(self, session_id: str, name: str) -> Kept:
        return await self._checkpoint_request(
            "checkpoint", _kept, session=self._handles.of(session_id), checkpoint=name
        )

    async def rollback(self, session_id: str, name: str) -> tuple[Launched, Restored]:
        handle = self._handles.of(session_id)
        with _as_checkpoint_error():
            return await self._launch_and_read(
                "rollback", session_id, _restored, session=handle, checkpoint=name, seconds=TRANSFER_SECONDS
            )

    async def branch(self, session_id: str, name: str, branch_id: str) -> Launched:
        handle, branch = self._handles.of(session_id), self._handles.of(branch_id)
        with _as_checkpoint_error():
            return await self._launch(
                "branch", branch_id, session=handle, checkpoint=name, branch=branch, seconds=TRANSFER_SECONDS
            )

    async def drop(self, session_id: str, name: str) -> None:
        await self._kernel_request("drop", dict, session=self._handles.of(session_id), checkpoint=name)

    async def checkpoints(self, session_id: str) -> set[str]:
        handle = self._handles.of(session_id)

        def read(told: dict[str, Any]) -> set[str]:
            return {
                str(name) for found in told["sessions"] if found["session"] == handle for name in found["checkpoints"]
            }

        return await self._kernel_request("list", read)

    async def _checkpoint_request(self, op: str, read: Callable[[dict[str, Any]], T], **arguments: Any) -> T:
        with _as_checkpoint_error():
            return await self._ask(op, read, seconds=TRANSFER_SECONDS, **arguments)

    async def usage(self, session_id: str) -> Usage:
        return await self._kernel_request("usage", _usage, session=self._handles.of(session_id))

    async def answers(self) -> bool:
        try:
            await self._kernel_request("ping", dict, seconds=PULSE_SECONDS)
        except HostLost:
            return False
        return True

    async def is_short_of_memory(self) -> bool:
        return await self._kernel_request("memory", _is_short)

    async def _ask(self, op: str, read: Callable[[dict[str, Any]], T], **arguments: Any) -> T:
        """What `read` makes of the answer.

        Raises:
            HostLost: it is not of the form that it should be, or as `Control.request`, which raises the others, too.
        """
        answer = await self._control.request(op, **arguments)
        try:
            return read(answer)
        except MISREAD as error:
            raise HostLost(f"The kernel host's answer to {op!r} cannot be read. reset starts a fresh one.") from error

    async def _kernel_request(self, op: str, read: Callable[[dict[str, Any]], T], **arguments: Any) -> T:
        try:
            return await self._ask(op, read, **arguments)
        except (ControlRefused, ControlFailed) as error:
            raise KernelError(str(error)) from error

    async def deaths(self) -> AsyncIterator[Death]:
        async for event in self._control.events():
            if event.get("event") != "death":
                continue
            try:
                death, oom_kills = self._death(event), int(event.get("oom_kills", 0))
            except MISREAD as error:
                logger.error("a death that kernel_host told cannot be read: %r", error)
                continue
            if oom_kills > self._oom_kills:
                self._oom_kills, self._oom_until = oom_kills, anyio.current_time() + OOM_SECONDS
            yield replace(
                death, out_of_memory=death.signal == signal.SIGKILL and anyio.current_time() < self._oom_until
            )

    def _death(self, told: dict[str, Any] | None) -> Death:
        told = told or {"session": "", "pid": 0}
        return Death(
            self._handles.session_id(str(told["session"])),
            int(told["pid"]),
            told.get("exit_code"),
            told.get("signal"),
            out_of_memory=False,
            exceeded=_exceeded(told.get("exceeded")),
            checkpoints=tuple(map(str, told["checkpoints"])) if "checkpoints" in told else None,
        )

    async def describe(self, session_id: str, path: str) -> tuple[str, int]:
        return await self._file_request("describe", _kind_and_size, session=self._handles.of(session_id), path=path)

    async def list_files(self, session_id: str, path: str) -> tuple[list[FoundFile], int]:
        return await self._file_request("list_files", _found_files, session=self._handles.of(session_id), path=path)

    async def edit(self, session_id: str, path: str, content: str, old: str) -> bool:
        handle = self._handles.of(session_id)
        try:
            with self._handed({"content": content, "old": old}) as name:
                return await self._file_request(
                    "edit", lambda told: bool(told["created"]), session=handle, path=path, content_file=name
                )
        except ControlFailed as error:
            raise FileError(f"{path}: {error}.{self._what_is_missing()}") from error

    def _what_is_missing(self) -> str:
        return "" if self.folder.path.is_dir() else MISSING.format(path=self.folder.outer)

    async def packages(self, session_id: str) -> list[tuple[str, str]]:
        return await self._file_request("packages", _packages, session=self._handles.of(session_id))

    async def environment(self, session_id: str) -> Environment:
        try:
            return read_environment(await self._package_request("environment", session=self._handles.of(session_id)))
        except (ValueError, KeyError, TypeError) as error:
            raise PackageError(f"The container did not tell which Python it has ({error}).") from error

    async def install(
        self, session_id: str, make_tar: Callable[[int], Iterator[bytes]], name: str
    ) -> list[InstalledPackage]:
        async with self._staging(session_id) as (staging, folder, uid):
            await anyio.to_thread.run_sync(self._archive.put, folder, make_tar(uid), limiter=self._limiter)
            result = await self._package_request(
                "install",
                session=self._handles.of(session_id),
                staging=staging,
                name=name,
                seconds=INSTALL_SECONDS,
            )
        return [
            InstalledPackage(str(found["name"]), [str(module) for module in found["modules"]], bool(found["preloaded"]))
            for found in result["packages"]
        ]

    async def _package_request(self, op: str, **arguments: Any) -> dict[str, Any]:
        try:
            return await self._control.request(op, **arguments)
        except (ControlRefused, ControlFailed) as error:
            said = one_line(str(error), MAX_SAID)  # by uv, of files that the session has made
            raise PackageError(f"The packages could not be installed: {said}") from error

    async def put(self, session_id: str, path: str, make_tar: Callable[[int], Iterator[bytes]], name: str) -> str:
        async with self._staging(session_id) as (staging, folder, uid):
            await anyio.to_thread.run_sync(self._archive.put, folder, make_tar(uid), limiter=self._limiter)
            return await self._file_request(
                "receive",
                lambda told: str(told["path"]),
                session=self._handles.of(session_id),
                staging=staging,
                name=name,
                path=path,
                seconds=TRANSFER_SECONDS,
            )

    @asynccontextmanager
    async def take(self, session_id: str, path: str, max_bytes: int) -> AsyncIterator[tuple[Staged, Iterator[bytes]]]:
        async with self._staging(session_id) as (staging, folder, _):
            staged = await self._file_request(
                "send",
                _staged,
                session=self._handles.of(session_id),
                staging=staging,
                name="item",
                path=path,
                max_bytes=max_bytes,
                seconds=TRANSFER_SECONDS,
            )
            yield staged, self._archive.get(f"{folder}/item")

    @asynccontextmanager
    async def _staging(self, session_id: str) -> AsyncIterator[tuple[str, str, int]]:
        """A staging folder for one transfer: its name, its path as the archive sees it, and its owner's UID."""
        name, handle = secrets.token_hex(16), self._handles.of(session_id)
        path, uid = await self._file_request(
            "stage", lambda told: (str(told["path"]), int(told["uid"])), session=handle, staging=name
        )
        try:
            yield name, path, uid
        finally:
            with anyio.move_on_after(TRANSFER_SECONDS, shield=True):
                await self._file_request("unstage", dict, session=handle, staging=name, seconds=TRANSFER_SECONDS)

    async def _file_request(self, op: str, read: Callable[[dict[str, Any]], T], **arguments: Any) -> T:
        try:
            return await self._ask(op, read, **arguments)
        except ControlRefused as error:
            raise FileError(f"{error}.".replace("..", ".")) from error
        except ControlFailed as error:
            raise FileError(f"The file operation failed: {error}") from error


def _usage(told: dict[str, Any]) -> Usage:
    return Usage(int(told["memory"]), float(told["cpu_seconds"]), int(told["processes"]))


def _kept(told: dict[str, Any]) -> Kept:
    return Kept(int(told["files"]), int(told["bytes_copied"]))


def _restored(told: dict[str, Any]) -> Restored:
    files = told["files"]
    changed, removed, created = ([str(path) for path in files[kind]] for kind in ("changed", "removed", "created"))
    return Restored(changed, removed, created, int(files["count"]), [str(path) for path in told["lost"]])


def _is_short(told: dict[str, Any]) -> bool:
    found = {name: int(size) for name, size in told.items()}
    crowded = found["limit"] and found["used"] > MOST_OF_LIMIT * found["limit"]
    return bool(crowded) or found["available"] < LEAST_OF_MACHINE * found["total"]


def _kind_and_size(told: dict[str, Any]) -> tuple[str, int]:
    return str(told["kind"]), int(told["size"])


def _found_files(told: dict[str, Any]) -> tuple[list[FoundFile], int]:
    found = [FoundFile(str(f["path"]), int(f["size"]), float(f["modified"])) for f in told["files"]]
    return found, int(told["more"])


def _packages(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), str(version)) for name, version in told["packages"]]


def _staged(told: dict[str, Any]) -> Staged:
    skipped = [str(name) for name in told["skipped"]]
    return Staged(str(told["kind"]), int(told["size"]), int(told["files"]), skipped, int(told["skipped_count"]))


@contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    try:
        yield
    except ControlSaid as error:
        raise CheckpointError(session_says(str(error))) from error
    except (ControlRefused, ControlFailed) as error:
        raise CheckpointError(one_line(str(error), MAX_SAID)) from error


def _record_name(session_id: str) -> str:
    return f"session-{session_id}"


def find_session(session_id: str) -> Path | None:
    """The run folder that has a record of a session, of whatever server of this user."""
    name = _record_name(session_id)
    if not _RECORD.fullmatch(name):
        return None
    folders = (outer for parent in parent_folders() for outer in run_folders(parent))
    return next((outer for outer in folders if (outer / name).is_file()), None)


def read_sessions(outer: Path) -> list[SessionRecord]:
    """What there is in a run folder of sessions; a record that cannot be read is passed over."""
    found = []
    for path in outer.iterdir():
        try:
            if match := _RECORD.fullmatch(path.name):
                record = read_record(path)
                found.append(
                    records.read(SessionRecord, {**record, "launched": records.read(Launched, record["launched"])})
                )
                if found[-1].session_id != match[1]:
                    raise ValueError("of another session")
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s cannot be read: %s", path, error)
    return found


def _exceeded(told: Any) -> Exceeded | None:
    if not told:
        return None
    return Exceeded(str(told["what"]), int(told["used"]), int(told["limit"]), str(told["unit"]))
