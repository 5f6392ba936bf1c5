"""Kernels in a locked-down container of a Docker engine: the default."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from kernel_server.errors import EngineError, FileError, HostLost
from kernel_server.hosts.base import HostDescription, HostSettings, Report
from kernel_server.hosts.control import connect_control
from kernel_server.hosts.controlled import ControlledHost
from kernel_server.hosts.engine import ContainerSpec, Engine, NameTaken
from kernel_server.hosts.images import ImageRequest, ensure_kernel_image
from kernel_server.hosts.rundir import run_folder
from kernel_server.hosts.uids import LARGE, SMALL
from kernel_server.hosts.volumes import SharedVolume
from kernel_server.tasks import running
from kernel_server.text import human_size

logger = logging.getLogger(__name__)

T = TypeVar("T")

RUN_DIR = "/run/kernel_server"
WORKSPACE_DIR = "/workspace"
SHARED_DIR = "/shared"
PYTHON = "/opt/kernel_server/venv/bin/python"
KERNEL_HOST = "/opt/kernel_server/kernel_host"
CA_BUNDLE = "/opt/kernel_server/ca-bundle.crt"
START_SECONDS = 60.0
LEASE_SECONDS = 10.0  # a container whose server was killed leaves after this time
# What kernel_host needs to make a session: become its UID, give it its folder, end its processes.
CAPABILITIES = ("SETUID", "SETGID", "CHOWN", "KILL")
PROCESSES_PER_SESSION = 256  # threads count too; a kernel has about 12
OPEN_FILES_PER_SESSION = 4_096
UNREACHABLE_HINT = (
    "The container runs, but its sockets do not appear in {run_dir}: an engine in a virtual machine, a snap or another "
    "container does not share that folder. Set TMPDIR to a folder that the engine can see."
)
SHM_BYTES = 256 << 20
TMP_BYTES = 256 << 20


class DockerArchive:
    """Docker's archive API on the staging folder."""

    def __init__(self, engine: Engine, container_id: str) -> None:
        self._engine = engine
        self._container_id = container_id

    def put(self, folder: str, tar: Iterator[bytes]) -> None:
        try:
            self._engine.put_archive(self._container_id, folder, tar)
        except EngineError as error:
            raise FileError(f"Nothing was copied. {error}.") from error

    def get(self, path: str) -> Iterator[bytes]:
        try:
            yield from self._engine.get_archive(self._container_id, path)
        except EngineError as error:
            raise FileError(f"Nothing was copied. {error}.") from error


class DockerHosts:
    """See `KernelHosts`. Where a server has several containers, they have a volume in common."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._shared = self._make_shared()

    def _make_shared(self) -> SharedVolume | None:
        return SharedVolume(self._settings.state_dir / "volumes") if self._settings.per_host else None

    def start(self, report: Report) -> AbstractAsyncContextManager[ControlledHost]:
        return docker_host(self._settings, report, self._shared)

    def renew(self) -> Callable[[], Awaitable[None]]:
        shared, self._shared = self._shared, self._make_shared()

        async def clear() -> None:
            if shared is not None and shared.name:
                with anyio.CancelScope(shield=True):
                    await _in_thread(partial(_remove, shared))

        return clear


def _remove(volume: SharedVolume) -> None:
    try:
        engine = Engine.connect()
        try:
            volume.remove(engine)
        finally:
            engine.close()
    except EngineError as error:
        logger.warning("the shared folder is left for the next server to remove: %s", error)


@asynccontextmanager
async def docker_host(
    settings: HostSettings, report: Report, shared: SharedVolume | None = None
) -> AsyncIterator[ControlledHost]:
    """Starts a container with kernel_host in it; removes it, and all kernels, on leaving.

    Args:
        shared: for /workspace/shared, which the container has for itself without it.

    Raises:
        EngineUnavailable: no engine, or no permission.
        ImageUnavailable: the image cannot be had.
        HostLost: the container did not come up.
    """
    engine = await _in_thread(Engine.connect)
    try:
        host_uid = await _in_thread(partial(_uid_inside, engine))
        image = await _in_thread(partial(_ensure_image, engine, settings, report))
        if shared is not None:
            await _in_thread(partial(shared.open, engine))
        report("Starting the container")
        with run_folder() as run_dir:
            place = Place(run_dir, host_uid, shared.name if shared else "")
            container_id = await _create(engine, settings, image, place)
            try:
                async with _started(engine, container_id, run_dir) as control:
                    description = _describe(control.hello, settings, image)
                    logger.info("container %s runs: %s", container_id[:12], description)
                    archive = DockerArchive(engine, container_id)
                    yield ControlledHost(control, run_dir, archive, description)
            finally:
                with anyio.CancelScope(shield=True), suppress(EngineError):
                    await _in_thread(partial(engine.remove_container, container_id))
    finally:
        engine.close()


def build_image(settings: HostSettings, report: Report) -> str:
    """Builds the image if need be and returns its name. Blocks.

    Raises:
        EngineError: it cannot be had.
    """
    engine = Engine.connect()
    try:
        return _ensure_image(engine, settings, report)
    finally:
        engine.close()


async def _in_thread(function: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(function)


def _ensure_image(engine: Engine, settings: HostSettings, report: Report) -> str:
    request = ImageRequest(
        lock_folder=settings.state_dir,
        image=settings.image,
        ca_bundle=settings.ca_file,
        build_network=settings.build_network,
    )
    return ensure_kernel_image(engine, request, report)


def _uid_inside(engine: Engine) -> int:
    """The server's user as the container sees it.

    Raises:
        EngineError: sockets in the run folder would not reach the server.
    """
    if not engine.address.startswith("unix://"):
        raise EngineError(
            f"The engine at {engine.address} is on another machine: kernels are reached over unix sockets, which need "
            "an engine on this one. Unset DOCKER_HOST, or let it name a local unix socket."
        )
    info = engine.info()
    if info.userns_remap:
        raise EngineError(
            "The engine maps user ids (userns-remap), so the server cannot share sockets with the container. "
            "Use a rootless engine, or one without userns-remap."
        )
    return 0 if info.rootless else os.getuid()


@dataclass(frozen=True)
class Place:
    """Where a container reaches the server: its run folder, the server's UID inside; the volume that it shares or ""."""

    run_dir: Path
    host_uid: int
    volume: str


async def _create(engine: Engine, settings: HostSettings, image: str, place: Place) -> str:
    ranges = SMALL if settings.session_max < SMALL.size else LARGE
    for name, first_uid in ranges.others(place.host_uid):
        spec = _spec(settings, image, place, name, first_uid, ranges.size)
        with suppress(NameTaken):
            return await _in_thread(partial(engine.create_container, spec))
    raise EngineError(
        f"{ranges.many} containers of kernel servers exist on this engine already. Stop servers that are not needed, "
        "or remove what they left: docker ps -a --filter label=kernel_server.run_dir"
    )


def _spec(settings: HostSettings, image: str, place: Place, name: str, first_uid: int, uid_count: int) -> ContainerSpec:
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
        labels={"kernel_server.run_dir": str(place.run_dir), "kernel_server.server_pid": str(os.getpid())},
        capabilities=CAPABILITIES,
        binds={str(place.run_dir): RUN_DIR},
        volumes={WORKSPACE_DIR: "", **({SHARED_DIR: place.volume} if place.volume else {})},
        tmpfs={"/tmp": f"rw,nosuid,nodev,size={TMP_BYTES},mode=1777"},  # noqa: S108 - the container's own
        memory=settings.memory,
        cpus=settings.cpus,
        pids=PROCESSES_PER_SESSION * settings.session_max + 64,
        shm_bytes=SHM_BYTES,
    )


@asynccontextmanager
async def _started(engine: Engine, container_id: str, run_dir: Path) -> AsyncIterator[Any]:
    """Starts the container and connects to kernel_host; what it says on its way to a failure goes into the error."""
    ended = anyio.Event()
    said: deque[str] = deque(maxlen=20)
    output = await _in_thread(partial(engine.attach, container_id))

    def read_output() -> None:
        with suppress(Exception):  # the stream breaks off with the container, in whatever way
            for chunk in output:
                said.append(chunk.decode(errors="replace"))
                logger.debug("kernel_host: %s", said[-1].rstrip())

    async def follow() -> None:
        await anyio.to_thread.run_sync(read_output, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
        ended.set()
        logger.error(
            "the container %s has ended; its last words: %s", container_id[:12], "".join(said).strip() or "none"
        )

    await _in_thread(partial(engine.start_container, container_id))
    try:
        async with running(follow), connect_control(run_dir / "control", START_SECONDS, ended) as control:
            yield control
    except HostLost as error:
        if said:
            raise HostLost(f"{error} It said: {''.join(said).strip()[-2000:]}") from error
        if not ended.is_set():
            raise HostLost(f"{error} {UNREACHABLE_HINT.format(run_dir=run_dir)}") from error
        raise


def _describe(hello: dict[str, Any], settings: HostSettings, image: str) -> HostDescription:
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
