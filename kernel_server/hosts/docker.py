"""Kernels in a locked-down container of a Docker engine: the default."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from kernel_server.errors import EngineError, FileError, HostLost
from kernel_server.hosts.base import HostSettings, Report, SessionRecord
from kernel_server.hosts.containers import Place, container_spec, describe
from kernel_server.hosts.control import PULSE_SECONDS, connect_control
from kernel_server.hosts.controlled import ControlledHost, Owner, find_session, read_sessions
from kernel_server.hosts.engine import Engine, NameTaken
from kernel_server.hosts.images import ImageRequest, ensure_kernel_image
from kernel_server.hosts.orphans import RUN_DIR_LABEL, remove_stopped
from kernel_server.hosts.proxy import serve_proxy
from kernel_server.hosts.rundir import (
    HOST_RECORD,
    RunFolder,
    is_held,
    is_served,
    parent_folders,
    read_record,
    run_folder,
    run_folders,
    taken_over,
)
from kernel_server.hosts.uids import LARGE, SMALL
from kernel_server.hosts.volumes import SharedVolume
from kernel_server.secret import Secret, user_secret
from kernel_server.tasks import running

logger = logging.getLogger(__name__)

T = TypeVar("T")

START_SECONDS = 60.0
ENDED = "Nothing answers at its socket: its container has ended."
UNREACHABLE_HINT = (
    "The container runs, but its sockets do not appear in {run_dir}: an engine in a virtual machine, a snap or another "
    "container does not share that folder. Set TMPDIR to a folder that the engine can see."
)


class DockerArchive:
    """Docker's archive API on the staging folder."""

    def __init__(self, engine: Engine, container_id: str) -> None:
        self._engine = engine
        self._container_id = container_id

    def put(self, folder: str, tar: Iterator[bytes]) -> None:
        try:
            self._engine.put_archive(self._container_id, folder, tar)
        except EngineError as error:
            raise FileError(f"Nothing was copied. {error}") from error

    def get(self, path: str) -> Iterator[bytes]:
        try:
            yield from self._engine.get_archive(self._container_id, path)
        except EngineError as error:
            raise FileError(f"Nothing was copied. {error}") from error


@dataclass(frozen=True)
class HostRecord:
    """What a later server needs to go on with a container; lies in its run folder.

    Attributes:
        instance: of the settings.
        volume: the one that it shares with others, or "".
        mark: made of all else, and of the folder's name, with the secret that lies in the state folder.
    """

    instance: str
    owner: Owner
    container_id: str
    image: str
    volume: str
    mark: str = ""

    def _made_of(self, outer: Path) -> tuple[str, ...]:
        return "host", outer.name, json.dumps(asdict(replace(self, mark="")), sort_keys=True)

    def marked(self, secret: Secret, outer: Path) -> HostRecord:
        """The same, with its mark."""
        return replace(self, mark=secret.mark(*self._made_of(outer)))

    def is_from(self, secret: Secret, outer: Path) -> bool:
        """Whether a server with that secret wrote it, for that folder."""
        return secret.has_made(self.mark, *self._made_of(outer))

    @classmethod
    def read(cls, outer: Path) -> HostRecord:
        """The record in a run folder; whether it is to be believed, `is_from` says.

        Raises:
            OSError, ValueError, TypeError: there is none.
        """
        record = read_record(outer / HOST_RECORD)
        return cls(**{**record, "owner": Owner(**record.get("owner", {}))})


class DockerHosts:
    """See `KernelHosts`. Where a server has several containers, they have a volume in common."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._volumes = self._make_volumes()

    @cached_property
    def _secret(self) -> Secret:
        return user_secret(self._settings.state_dir)

    def _make_volumes(self) -> list[SharedVolume]:
        """The volume for containers that start; those that were taken over may have others."""
        return [SharedVolume(self._settings.state_dir / "volumes")] if self._settings.per_host else []

    def start(self, report: Report) -> AbstractAsyncContextManager[ControlledHost]:
        return docker_host(self._settings, report, next(iter(self._volumes), None))

    def kept(self) -> Sequence[KeptContainer]:
        if not self._settings.keep_seconds:
            return []
        return [found for parent in parent_folders() for outer in run_folders(parent) if (found := self._kept(outer))]

    def _kept(self, outer: Path) -> KeptContainer | None:
        try:
            record = HostRecord.read(outer)
            if record.instance != self._settings.instance or is_held(outer):
                return None
            if not record.is_from(self._secret, outer):
                logger.warning("%s is passed over: no server with this state folder wrote its record", outer)
                return None
            return KeptContainer(outer.name, read_sessions(outer), outer, self._settings, record, self._take_volume)
        except (OSError, ValueError, TypeError):
            return None

    def whereabouts(self, session_id: str) -> str:
        outer = find_session(session_id)
        if outer is None:
            return ""
        try:
            if is_held(outer):
                return "Another server of yours that runs now has it (`kernel-server sessions` shows them)."
            if HostRecord.read(outer).instance == self._settings.instance:
                return "It could not be taken over from an earlier server just now; try again."
        except (OSError, ValueError, TypeError):
            return ""
        return "A server with other settings, or started in another folder, had it; one like that could go on with it."

    def _take_volume(self, name: str) -> None:
        if any(volume.name == name for volume in self._volumes):
            return
        volume = next((volume for volume in self._volumes if not volume.name), None)
        if volume is None:
            volume = SharedVolume(self._settings.state_dir / "volumes")
            self._volumes.append(volume)
        volume.take_over(name)

    def renew(self) -> Callable[[], Awaitable[None]]:
        volumes, self._volumes = self._volumes, self._make_volumes()

        async def clear() -> None:
            for volume in volumes:
                with anyio.CancelScope(shield=True):
                    await _in_thread(partial(_remove, volume))

        return clear


@dataclass(frozen=True)
class KeptContainer:
    """See `KeptHost`."""

    name: str
    sessions: list[SessionRecord]
    outer: Path
    settings: HostSettings
    record: HostRecord = field(repr=False)
    take_volume: Callable[[str], None]

    @asynccontextmanager
    async def take_over(self, report: Report) -> AsyncIterator[ControlledHost]:
        report("Taking over the container of an earlier server")
        engine = await _in_thread(Engine.connect)
        try:
            with taken_over(self.outer) as folder:
                if not await _in_thread(partial(_is_of, engine, self.record.container_id, folder)):
                    folder.kept = False
                    raise HostLost(ENDED)
                self.sessions[:] = read_sessions(self.outer)  # another server may have had it since
                if self.record.volume:
                    self.take_volume(self.record.volume)
                async with _container(engine, self.settings, folder, self.record, start=False) as host:
                    yield host
        except OSError as error:
            raise HostLost(f"Its container could not be taken over ({error.strerror}).") from error
        finally:
            engine.close()


def _is_of(engine: Engine, container_id: str, folder: RunFolder) -> bool:
    """Whether a container is the one that was started for a run folder: no other is touched for what a record says."""
    found = next((container for container in engine.containers() if container.id == container_id), None)
    named = found.labels.get(RUN_DIR_LABEL) if found else None
    return named is not None and os.path.realpath(named) == os.path.realpath(folder.path)


def _remove(volume: SharedVolume) -> None:
    if not volume.retire():
        return
    try:
        engine = Engine.connect()
        try:
            volume.remove(engine)
        finally:
            engine.close()
    except EngineError as error:
        logger.info("the shared folder is left for the next server: %s", error)


@asynccontextmanager
async def docker_host(
    settings: HostSettings, report: Report, shared: SharedVolume | None = None
) -> AsyncIterator[ControlledHost]:
    """Starts a container with kernel_host in it; removes it, and all kernels, on leaving, unless it is to be kept.

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
        await _in_thread(partial(remove_stopped, engine))
        with run_folder() as folder:
            owner = Owner.new()
            place = Place(folder.path, host_uid, shared.name if shared else "", owner.digest)
            container_id = await _create(engine, settings, image, place)
            record = HostRecord(settings.instance, owner, container_id, image, place.volume)
            if settings.keep_seconds:
                secret = await _in_thread(partial(user_secret, settings.state_dir))
                folder.write(HOST_RECORD, asdict(record.marked(secret, folder.outer)))
            async with _container(engine, settings, folder, record, start=True) as host:
                yield host
    finally:
        engine.close()


@asynccontextmanager
async def _container(
    engine: Engine, settings: HostSettings, folder: RunFolder, record: HostRecord, *, start: bool
) -> AsyncIterator[ControlledHost]:
    try:
        if not start and not is_served(folder.outer):
            raise HostLost(ENDED)
        async with AsyncExitStack() as stack:
            if settings.allowed_hosts is not None:
                await stack.enter_async_context(serve_proxy(folder.path / "proxy", settings.allowed_hosts))
            control = await stack.enter_async_context(_started(engine, record, folder.path, start=start))
            description = describe(control.hello, settings, record.image)
            logger.info("container %s runs: %s", record.container_id[:12], description)
            archive = DockerArchive(engine, record.container_id)
            yield ControlledHost(control, folder, archive, description, settings.keep_seconds)
    except HostLost:
        folder.kept = False
        raise
    finally:
        if not folder.kept:
            with anyio.CancelScope(shield=True):
                await _end(engine, record, folder)


async def _end(engine: Engine, record: HostRecord, folder: RunFolder) -> None:
    """Removes the container. Where the engine does not, it ends by itself, and is removed when the engine is there."""
    try:
        await _in_thread(partial(engine.remove_container, record.container_id))
    except EngineError as error:
        logger.warning("the container %s is asked to end by itself: %s", record.container_id[:12], error)
        with suppress(HostLost):
            connecting = connect_control(folder.path / "control", record.owner.token, PULSE_SECONDS, anyio.Event())
            async with connecting as control:
                await control.request("shutdown", seconds=PULSE_SECONDS)


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
        fetch=settings.fetch_image,
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


async def _create(engine: Engine, settings: HostSettings, image: str, place: Place) -> str:
    ranges = SMALL if settings.session_max < SMALL.size else LARGE
    for name, first_uid in ranges.others(place.host_uid):
        spec = container_spec(settings, image, place, name, first_uid, ranges.size)
        with suppress(NameTaken):
            return await _in_thread(partial(engine.create_container, spec))
    raise EngineError(
        f"{ranges.many} containers of kernel servers exist on this engine already. Stop servers that are not needed, "
        "or remove what they left: docker ps -a --filter label=kernel_server.run_dir"
    )


@asynccontextmanager
async def _started(engine: Engine, record: HostRecord, run_dir: Path, *, start: bool) -> AsyncIterator[Any]:
    """Starts the container and connects to kernel_host; what it says on its way to a failure goes into the error."""
    container_id = record.container_id
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
            "the container %s, or its engine, has ended; its last words: %s",
            container_id[:12],
            "".join(said).strip() or "none",
        )

    try:
        with closing(output):
            if start:
                await _in_thread(partial(engine.start_container, container_id))
            connecting = connect_control(run_dir / "control", record.owner.token, START_SECONDS, ended)
            async with running(follow), connecting as control:
                yield control
    except HostLost as error:
        if said:
            raise HostLost(f"{error} It said: {''.join(said).strip()[-2000:]}") from error
        if not ended.is_set():
            raise HostLost(f"{error} {UNREACHABLE_HINT.format(run_dir=run_dir)}") from error
        raise
