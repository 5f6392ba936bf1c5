"""The Docker engine: the only file that knows docker-py, and the only one where its untyped values appear.

Everything here is synchronous and may block for as long as its timeout says: callers use worker threads. Importing
the module is cheap; docker-py itself (0.13 s) is imported by the first `Engine.connect`.

It refuses to know what the images and containers are for: see `images` and `docker`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import tarfile
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_server.errors import EngineError, EngineUnavailable, ImageUnavailable
from kernel_server.hosts.advice import why_unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

# Seconds for one answer of the engine. An inspect takes milliseconds; an engine that needs longer is stuck.
REQUEST_TIMEOUT = 30.0
# Seconds until it says that it is there, which needs no work of it.
PING_TIMEOUT = 15.0
CONNECT_SECONDS = 1.0  # to a socket of this machine, of which another may be the right one
# Seconds for the removal of a container whose processes have been killed.
REMOVAL_TIMEOUT = 10.0
# Seconds without a line of output in a build. Installing the data stack is silent for a minute on a slow line.
BUILD_SILENCE_TIMEOUT = 900.0
# Last lines of a build's log that an error shows.
LOG_LINES_IN_ERROR = 12
# Seconds without a byte in a transfer: the engine answers only when a whole archive is unpacked, and on disk.
BULK_TIMEOUT = 120.0
ARCHIVE_CHUNK_BYTES = 1 << 20
READ_SECONDS = 1.0  # for what has come of a container's output
HTTP_NOT_FOUND = 404
HTTP_CONFLICT = 409
DEFAULT_SOCKET = Path("/var/run/docker.sock")
# The builder paints what a step wrote to stderr.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class AttachedOutput:
    """Chunks of what a container writes; who reads them in one thread is told of the end by `close` in another."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._reading = threading.Lock()

    def __iter__(self) -> Iterator[bytes]:
        with self._reading, contextlib.suppress(ValueError):  # it was closed before
            yield from self._stream

    def close(self) -> None:
        """Ends it. docker-py's own `close` leaves the descriptor to the garbage collector."""
        with contextlib.suppress(Exception):  # it fails where the stream has ended
            self._stream.close()
        # Whoever reads is in poll(2), and would wait for ever at what is opened next under the number of the descriptor.
        if self._reading.acquire(timeout=READ_SECONDS):
            self._stream._response.close()  # noqa: SLF001 - there is no other way to it
            self._reading.release()


@dataclass(frozen=True)
class EngineInfo:
    """What `docker info` says of the engine, as far as we act on it.

    Attributes:
        rootless: the engine runs as a user: root of a container is another UID on the host.
        userns_remap: the engine maps the UIDs of all containers (`--userns-remap`).
    """

    rootless: bool
    userns_remap: bool


@dataclass(frozen=True)
class EngineFacts:
    """What a person should know of an engine.

    Attributes:
        components: version by name in lower case, such as "runc" → "1.1.5+ds1".
        security: profile by name, such as "seccomp" → "default", "apparmor" → "".
        without: limits of containers that it cannot enforce.
        runtimes: that containers may have.
        root_folder: where it keeps images and volumes, on its machine.
    """

    version: str
    api_version: str
    operating_system: str
    components: Mapping[str, str]
    security: Mapping[str, str]
    cgroup_version: str
    cgroup_driver: str
    without: tuple[str, ...]
    runtimes: tuple[str, ...]
    storage_driver: str
    root_folder: str


@dataclass(frozen=True)
class ContainerInfo:
    """One line of `docker ps`. `image` is an id, `state` such as "running", `created` in seconds since 1970."""

    id: str
    name: str
    image: str
    state: str
    created: float
    labels: Mapping[str, str]


@dataclass(frozen=True)
class ImageInfo:
    """What we use of `docker image inspect`. `id` is the full digest, "sha256:..."."""

    id: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class PullResult:
    """How a pull ended. False when it failed; then `reason` is the engine's own text."""

    pulled: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.pulled


@dataclass(frozen=True)
class BuildRequest:
    """One `docker build`.

    Attributes:
        context: path in the context → content. Modes and times are fixed, so that equal content hits the build cache.
        network: of the build steps: "default" is the engine's own choice, "host", "none", or a network's name.
    """

    context: Mapping[str, bytes]
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str = "default"


@dataclass(frozen=True)
class ContainerSpec:
    """A container with a read-only root, no-new-privileges and no capability but those named.

    Attributes:
        binds: host path → container path.
        volumes: container path → name of a volume, or "" for a fresh one that goes with the container.
        tmpfs: container path → mount options.
        memory: bytes; 0 is no limit.
        cpus: 0 is all.
        pids: processes and threads at a time.
        network: mode of its network, such as "none".
        runtime: "" is the engine's default.
    """

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    capabilities: tuple[str, ...]
    binds: Mapping[str, str]
    volumes: Mapping[str, str]
    tmpfs: Mapping[str, str]
    memory: int
    cpus: float
    pids: int
    network: str = "none"
    runtime: str = ""


class NameTaken(EngineError):
    """A container of that name exists."""


class BuildFailed(ImageUnavailable):
    """A build step failed.

    Attributes:
        exit_code: of the step that failed; None when it was not a step (no network to the registry, disk full ...).
        log: the last lines of the build's output.
    """

    def __init__(self, reason: str, exit_code: int | None, log: tuple[str, ...]) -> None:
        self.exit_code = exit_code
        self.log = log
        tail = "".join(f"\n  {line}" for line in log)
        super().__init__(f"The image build failed: {reason}{' Its last output:' + tail if tail else ''}")


class Engine:
    """A connection to one engine. Safe to use from several threads; whoever connects also calls `close`."""

    def __init__(self, client: Any, address: str) -> None:
        # docker-py's APIClient (Any: it has no type stubs). Its connection pool is shared by the threads.
        self._client = client
        self.address = address
        self._info: EngineInfo | None = None
        self._info_lock = threading.Lock()
        self._bulk_client: Any = None

    @classmethod
    def connect(cls, *, timeout: float = REQUEST_TIMEOUT) -> Engine:
        """Connects to the engine of DOCKER_HOST, else to the one of this machine, and negotiates the API version.

        Args:
            timeout: seconds for each later request, unless a method says otherwise.

        Raises:
            EngineUnavailable: nothing answers, or we may not talk to it; the message says what to do.
        """
        address = os.environ.get("DOCKER_HOST", "").strip() or _local_address()
        try:
            client = _make_client(address, "auto", min(timeout, PING_TIMEOUT))
            client.timeout = timeout
        except Exception as error:  # docker-py raises its own, requests', urllib3's and ssl's errors here
            raise EngineUnavailable(*why_unreachable(address, _text(error))) from error
        return cls(client, address)

    def close(self) -> None:
        """Drops the connections. Containers live on."""
        self._client.close()
        if self._bulk_client is not None:
            self._bulk_client.close()

    def ping(self) -> None:
        """Returns when the engine answers.

        Raises:
            EngineUnavailable: it does not.
        """
        try:
            self._client.get(f"{self._client.base_url}/_ping", timeout=PING_TIMEOUT).raise_for_status()
        except Exception as error:  # see connect
            raise EngineUnavailable(*why_unreachable(self.address, _text(error))) from error

    def info(self) -> EngineInfo:
        """The engine's facts; asked once, then remembered."""
        with self._info_lock:
            if self._info is None:
                self._info = self._ask_info()
            return self._info

    def _ask_info(self) -> EngineInfo:
        with _mapped("read the engine's facts"):
            info: dict[str, Any] = self._client.info()
        names = _security(info)
        return EngineInfo(rootless="rootless" in names, userns_remap="userns" in names)

    def facts(self) -> EngineFacts:
        """More of them, for a person."""
        with _mapped("read the engine's facts"):
            version: dict[str, Any] = self._client.version()
            info: dict[str, Any] = self._client.info()
        limits = {"MemoryLimit": "memory", "SwapLimit": "swap", "PidsLimit": "processes", "CpuCfsQuota": "CPUs"}
        return EngineFacts(
            version=str(version.get("Version", "")),
            api_version=str(version.get("ApiVersion", "")),
            operating_system=str(info.get("OperatingSystem", "")),
            components={str(c["Name"]).lower(): str(c["Version"]) for c in version.get("Components") or ()},
            security=_security(info),
            cgroup_version=str(info.get("CgroupVersion") or "1"),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            without=tuple(limit for key, limit in limits.items() if info.get(key) is False),
            runtimes=tuple(sorted(map(str, info.get("Runtimes") or ()))),
            storage_driver=str(info.get("Driver", "")),
            root_folder=str(info.get("DockerRootDir", "")),
        )

    # --- images

    def image(self, reference: str) -> ImageInfo | None:
        """Inspects a local image; None when there is none of that name or id. A few milliseconds."""
        import docker.errors

        with _mapped(f"inspect the image {reference}"):
            try:
                found: dict[str, Any] = self._client.inspect_image(reference)
            except docker.errors.ImageNotFound:
                return None
        return ImageInfo(str(found["Id"]), _labels(found.get("Config") or {}))

    def pull(self, reference: str, *, first_answer_timeout: float, timeout: float) -> PullResult:
        """Pulls an image.

        Args:
            reference: without a tag, "latest" is meant.
            first_answer_timeout: seconds until the first sign of life of the registry.
            timeout: seconds in all.

        Returns:
            False with the reason when it failed or took too long. A pull that took too long goes on in the
            background while this process lives; what it fetched is there for the next call.
        """
        client = self._client
        progress = threading.Event()
        done = threading.Event()
        result = [PullResult(False, f"the registry did not answer within {first_answer_timeout:g} s")]

        def run() -> None:
            try:
                result[0] = _follow_pull(client, reference, progress)
            except Exception as error:  # the thread's only result is the reason
                result[0] = PullResult(False, _text(error))
            finally:
                done.set()
                progress.set()

        # A thread, since the wait for the registry happens inside one HTTP request without any byte of answer.
        threading.Thread(target=run, name="docker pull", daemon=True).start()
        if not progress.wait(first_answer_timeout):
            return PullResult(False, f"the registry did not answer within {first_answer_timeout:g} s")
        if not done.wait(timeout):
            return PullResult(False, f"the pull did not finish within {timeout:g} s")
        return result[0]

    def build(self, request: BuildRequest, on_line: Callable[[str], None]) -> str:
        """Builds an image, without a tag, and returns its id. Nothing is left behind by a failed or broken-off build.

        Args:
            request: what to build.
            on_line: gets each line of output as it comes, in this thread.

        Raises:
            BuildFailed: a step failed, or the builder itself.
        """
        log: deque[str] = deque(maxlen=LOG_LINES_IN_ERROR)
        with _mapped("build an image"):
            events = self._client.build(
                fileobj=io.BytesIO(_context_tar(request.context)),
                custom_context=True,
                buildargs=dict(request.build_args),
                labels=dict(request.labels),
                network_mode=None if request.network in {"", "default"} else request.network,
                timeout=BUILD_SILENCE_TIMEOUT,
                # HTTP_PROXY and its like from the user's ~/.docker/config.json, as the docker command does it.
                use_config_proxy=True,
                rm=True,
                forcerm=True,
                decode=True,
            )
            image_id = _follow_build(events, log, on_line)
        if not image_id:
            raise BuildFailed("the engine did not name the image it built.", None, tuple(log))
        return image_id

    def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Gives an image a name, taking it from whatever had it."""
        with _mapped(f"tag the image {repository}:{tag}"):
            self._client.tag(image_id, repository, tag, force=True)

    def remove_image(self, reference: str, *, force: bool = False) -> bool:
        """Removes a name, and the image when it was the last one. False when there was none."""
        import docker.errors

        with _mapped(f"remove the image {reference}"):
            try:
                self._client.remove_image(reference, force=force)
            except docker.errors.ImageNotFound:
                return False
        return True

    def image_names(self, repository: str) -> dict[str, str]:
        """The local names of a repository, "name:tag" → image id."""
        return {name: image.id for name, image in self.images(repository).items()}

    def images(self, repository: str) -> dict[str, ImageInfo]:
        """The local images of a repository by "name:tag"."""
        with _mapped(f"list the images of {repository}"):
            found: list[dict[str, Any]] = self._client.images(name=repository)
        return {
            str(name): ImageInfo(str(entry["Id"]), _labels(entry))
            for entry in found
            for name in entry.get("RepoTags") or ()
        }

    # --- containers

    def create_container(self, spec: ContainerSpec) -> str:
        """Makes a container that does not run yet and returns its id.

        Raises:
            NameTaken: another container has that name.
            EngineError: the engine refuses the settings.
        """
        import docker.errors
        from docker.types import LogConfig, Mount, Ulimit

        mounts = [Mount(target, source, type="bind") for source, target in spec.binds.items()]
        mounts += [Mount(target, name or None, type="volume") for target, name in spec.volumes.items()]
        host_config = self._client.create_host_config(
            auto_remove=True,
            cap_add=list(spec.capabilities),
            cap_drop=["ALL"],
            init=True,
            ipc_mode="private",
            log_config=LogConfig(type="none"),
            mem_limit=spec.memory or None,
            memswap_limit=spec.memory or None,
            mounts=mounts,
            nano_cpus=int(spec.cpus * 1e9) or None,
            network_mode=spec.network,
            oom_score_adj=500,
            pids_limit=spec.pids,
            read_only=True,
            runtime=spec.runtime or None,
            security_opt=["no-new-privileges"],
            tmpfs=dict(spec.tmpfs),
            ulimits=[Ulimit(name="core", soft=0, hard=0)],
        )
        with _mapped(f"create the container {spec.name}"):
            try:
                made: dict[str, Any] = self._client.create_container(
                    spec.image,
                    command=[],
                    entrypoint=list(spec.command),
                    environment=dict(spec.environment),
                    host_config=host_config,
                    labels=dict(spec.labels),
                    name=spec.name,
                    user="0:0",
                    working_dir="/",
                )
            except docker.errors.APIError as error:
                if error.status_code == HTTP_CONFLICT:
                    raise NameTaken(f"There is a container {spec.name} already.") from error
                raise
        return str(made["Id"])

    def start_container(self, container_id: str) -> None:
        """Starts it."""
        with _mapped("start the container"):
            self._client.start(container_id)

    def attach(self, container_id: str) -> AttachedOutput:
        """What the container's main process writes; ends with the container. Attached when this returns."""
        with _mapped("attach to the container"):
            return AttachedOutput(self._bulk().attach(container_id, stream=True, logs=False))

    def remove_container(self, container_id: str) -> None:
        """Kills and removes it with its anonymous volumes; no error if it is gone."""
        import docker.errors

        with _mapped("remove the container"):
            try:
                self._client.remove_container(container_id, force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code == HTTP_CONFLICT:
                    self._wait_until_removed(container_id)
                elif error.status_code != HTTP_NOT_FOUND:
                    raise

    def _wait_until_removed(self, container_id: str) -> None:
        """Its automatic removal is under way: until that is done, it still uses its volumes."""
        import docker.errors
        import requests.exceptions

        with contextlib.suppress(docker.errors.APIError, requests.exceptions.RequestException):
            self._client.wait(container_id, condition="removed", timeout=REMOVAL_TIMEOUT)

    def containers(self) -> list[ContainerInfo]:
        """All of them, whatever their state and whoever made them."""
        with _mapped("list the containers"):
            found: list[dict[str, Any]] = self._client.containers(all=True)
        return [
            ContainerInfo(
                id=str(entry["Id"]),
                name=str((entry.get("Names") or [entry["Id"]])[0]).removeprefix("/"),
                image=str(entry["ImageID"]),
                state=str(entry["State"]),
                created=float(entry["Created"]),
                labels=_labels(entry),
            )
            for entry in found
        ]

    def volumes(self, prefix: str) -> list[str]:
        """The names of volumes that begin with `prefix`."""
        with _mapped("list the volumes"):
            found: dict[str, Any] = self._client.volumes(filters={"name": prefix})
        names = [str(entry["Name"]) for entry in found.get("Volumes") or ()]
        return [name for name in names if name.startswith(prefix)]

    def remove_volume(self, name: str) -> None:
        """Removes a volume that no container uses; no error if it is gone."""
        import docker.errors

        with _mapped(f"remove the volume {name}"), contextlib.suppress(docker.errors.NotFound):
            self._client.remove_volume(name)

    def put_archive(self, container_id: str, folder: str, tar: Iterator[bytes]) -> None:
        """Unpacks a tar stream beneath a folder of the container, as root: only ever where no session can write."""
        self.ping()
        with _mapped("write into the container"):
            self._bulk().put_archive(container_id, folder, tar)

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """A tar stream of a path in the container, read as root: only ever where no session can write."""
        self.ping()
        with _mapped("read from the container"):
            chunks, _ = self._bulk().get_archive(container_id, path, chunk_size=ARCHIVE_CHUNK_BYTES)
            yield from chunks

    def _bulk(self) -> Any:
        """A client whose requests may take long."""
        with self._info_lock:
            if self._bulk_client is None:
                self._bulk_client = _make_client(self.address, self._client.api_version, BULK_TIMEOUT)
            return self._bulk_client


def _make_client(address: str, version: str, timeout: float) -> Any:
    """The one way to docker-py's client, so that all requests reach the same engine.

    TLS settings come from DOCKER_CERT_PATH and DOCKER_TLS_VERIFY, as for the docker command.
    """
    import docker
    import docker.utils

    arguments = docker.utils.kwargs_from_env(environment={**os.environ, "DOCKER_HOST": address})
    return docker.APIClient(version=version, timeout=timeout, **arguments)


def _local_address() -> str:
    """The system's socket, else one of rootless Docker or Docker Desktop; those are reached by "contexts" otherwise.

    One at which nobody answers, or not to us, counts only where there is no other.
    """
    folders = [Path(os.environ["XDG_RUNTIME_DIR"])] if os.environ.get("XDG_RUNTIME_DIR") else []
    folders += [Path.home() / ".docker/run", Path.home() / ".docker/desktop"]
    paths = [DEFAULT_SOCKET, *(folder / "docker.sock" for folder in folders)]
    there = [path for path in paths if os.path.exists(path)]
    usable = next(filter(_takes_connections, there), None)
    return f"unix://{usable or (*there, DEFAULT_SOCKET)[0]}"


def _takes_connections(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(str(path))
        return True
    return False


@contextlib.contextmanager
def _mapped(what: str) -> Generator[None]:
    """Turns errors of docker-py and of its HTTP client into ours."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        # Here, so that importing this module stays cheap.
        import docker.errors
        import requests.exceptions

        if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
            raise EngineUnavailable(f"The Docker engine went away or got stuck (could not {what}).") from error
        if isinstance(error, docker.errors.DockerException | requests.exceptions.RequestException):
            raise EngineError(f"The Docker engine could not {what}: {_text(error)}.") from error
        raise


def _security(info: Mapping[str, Any]) -> dict[str, str]:
    """Profiles by name, of options such as "name=seccomp,profile=default"."""
    options = [str(option).removeprefix("name=") for option in info.get("SecurityOptions") or ()]
    return {option.partition(",")[0]: option.partition(",profile=")[2] for option in options}


def _labels(entry: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in (entry.get("Labels") or {}).items()}


def _text(error: Exception) -> str:
    """The engine's own words, without docker-py's HTTP wrapping."""
    return str(getattr(error, "explanation", None) or error).strip().rstrip(".")


def _follow_pull(client: Any, reference: str, progress: threading.Event) -> PullResult:
    repository, tag = _split_reference(reference)
    for event in client.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in event:
            return PullResult(False, str(event["error"]).strip())
        progress.set()
    return PullResult(True)


def _split_reference(reference: str) -> tuple[str, str | None]:
    """Splits "registry:5000/name:tag"; a digest stays in the name, and no tag means "latest", never all tags."""
    if "@" in reference:
        return reference, None
    head, _, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    return (f"{head}/{name}" if head else name), tag or "latest"


def _follow_build(events: Iterator[dict[str, Any]], log: deque[str], on_line: Callable[[str], None]) -> str:
    image_id = ""
    for event in events:
        output = _COLOUR.sub("", str(event.get("stream") or event.get("status") or ""))
        for line in filter(None, map(str.rstrip, output.splitlines())):
            log.append(line)
            on_line(line)
        # The id comes as {"aux": {"ID": ...}} (Engine API, Build an image).
        image_id = str((event.get("aux") or {}).get("ID") or image_id)
        if "error" in event:
            detail: dict[str, Any] = event.get("errorDetail") or {}
            code = detail.get("code")
            raise BuildFailed(str(event["error"]).strip(), int(code) if code else None, tuple(log))
    return image_id


def _context_tar(files: Mapping[str, bytes]) -> bytes:
    """The build context. Owner, mode and time are constant: they would count in the engine's build cache."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    return buffer.getvalue()
