"""The image that containers run: found, or built once on top of the user's image, and cached.

It decides what to build and says why something cannot be had; the engine does the work (`engine`), and
`container/install.sh` what happens inside the build. It refuses to know settings, sessions and docker-py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernel_server.errors import EngineError, ImageUnavailable
from kernel_server.hosts import fallback
from kernel_server.hosts.engine import BuildFailed, BuildRequest, ImageInfo
from kernel_server.hosts.fallback import SCRIPT_PREFIX
from kernel_server.private import open_private

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from kernel_server.hosts.engine import Engine

DEFAULT_IMAGE = "python:3.13-slim"
# What container/make-base.sh makes where no registry can be reached.
FALLBACK_IMAGE = "kernel-server-base:trixie"
# Repository of the cached layers; the tag is the key.
LAYER_REPOSITORY = "kernel-server"
_LAYER_NAME = re.compile(rf"{LAYER_REPOSITORY}:[0-9a-f]{{12}}")
# Version of the control protocol that the kernel_host in an image speaks (container/Dockerfile sets the label).
PROTOCOL = "3"
PROTOCOL_LABEL = "kernel_server.protocol"
BASE_LABEL = "kernel_server.base"

# Seconds until a registry must have shown a sign of life: a server without internet falls back after that.
PULL_FIRST_ANSWER_TIMEOUT = 20.0
# Seconds for a whole pull: large images (a Jupyter stack is 1.5 GB) over slow lines.
PULL_TIMEOUT = 1800.0
# Seconds to wait for another server on this machine that is building.
LOCK_TIMEOUT = 2400.0
# Pause between two tries for that lock, in seconds.
LOCK_POLL_INTERVAL = 0.1

NOT_FETCHED = (
    "The image {image!r} is not on this machine, and is named by a .env that nobody has approved, for which nothing is "
    "fetched. If you trust that file: `docker pull {image}`, or `kernel-server trust` in the folder of the file."
)

# Exit codes of container/install.sh.
NO_PYTHON = 95
NO_PIP = 96
NO_INDEX = 97


@dataclass(frozen=True)
class ImageRequest:
    """What image is wanted.

    Attributes:
        lock_folder: a folder of this user; servers that share it build one after the other.
        image: the user's image (DOCKER_IMAGE), or the default one.
        ca_bundle: a PEM file of authorities that the build, and pip in the image, trust.
        build_network: network of the build steps. "" tries the engine's default, then "host" when the package index
            cannot be reached from there.
        fetch: pull the image where it is missing.
        data_stack: install numpy, pandas and so on; None: only on the default image, others bring their own packages.
    """

    lock_folder: Path
    image: str = DEFAULT_IMAGE
    ca_bundle: Path | None = None
    build_network: str = ""
    fetch: bool = True
    data_stack: bool | None = None

    @property
    def with_data_stack(self) -> bool:
        """Whether the data stack is installed, with the default resolved."""
        return self.image == DEFAULT_IMAGE if self.data_stack is None else self.data_stack


def ensure_kernel_image(engine: Engine, request: ImageRequest, report: Callable[[str], None]) -> str:
    """Returns the id of an image that has the kernel layer, building or fetching what is missing.

    Blocks: milliseconds when everything is there, a minute or more when not. Safe to call from several threads and
    processes at once: one builds, the others wait for it. Broken off, it leaves nothing half-made.

    Args:
        engine: where to look and build.
        request: which image.
        report: gets short lines for a person while something takes time.

    Raises:
        ImageUnavailable: the image is not there and cannot be had; the message says what to do.
        EngineError: the engine failed.
    """
    ready = find_ready(engine, request)
    if ready:
        return ready
    with _lock(request.lock_folder, report):
        # Another process may have built it while we waited.
        return find_ready(engine, request) or _build_layer(engine, request, _find_base(engine, request, report), report)


def container_folder() -> Path:
    """The folder `container/`: inside an installed package, or next to it in a checkout.

    Raises:
        ImageUnavailable: the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_container", package.parent / "container"):
        if (folder / "install.sh").is_file():
            return folder
    raise ImageUnavailable("This installation of kernel-server lacks its `container` folder. Install it again.")


def build_context(folder: Path) -> dict[str, bytes]:
    """The files that go into the build, by their path in the context; the same as container/.dockerignore lets in."""
    files = [folder / "Dockerfile", folder / "install.sh", *folder.glob("requirements-*.txt")]
    host = [path for path in (folder / "kernel_host").rglob("*") if path.is_file()]
    files += [path for path in host if "__pycache__" not in path.parts and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def layer_key(base_id: str, context: Mapping[str, bytes], *, data_stack: bool) -> str:
    """Twelve hex digits that change with the base image, with the files of the layer, and with the data stack.

    The CA bundle is left out: it changes how packages come, not which.
    """
    digest = hashlib.sha256(f"{base_id}\0{int(data_stack)}\0{PROTOCOL}\0".encode())
    for name in sorted(context):
        # Lengths keep the parts apart: no two different contexts make the same stream.
        digest.update(f"{len(name)}:{name}:{len(context[name])}:".encode() + context[name])
    return digest.hexdigest()[:12]


def find_ready(engine: Engine, request: ImageRequest) -> str | None:
    """The image to run when nothing has to be pulled or built."""
    image = engine.image(request.image)
    if image is not None and image.labels.get(PROTOCOL_LABEL) == PROTOCOL:
        return image.id
    if image is None and request.image == DEFAULT_IMAGE:
        # Where no registry answers, the fallback was used before: do not wait for the registry at every start.
        image = engine.image(FALLBACK_IMAGE)
    if image is None:
        return None
    layer = engine.image(_layer_name(image, request))
    return layer.id if layer else None


def _layer_name(base: ImageInfo, request: ImageRequest) -> str:
    context = build_context(container_folder())
    return f"{LAYER_REPOSITORY}:{layer_key(base.id, context, data_stack=request.with_data_stack)}"


def old_layers(engine: Engine) -> dict[str, ImageInfo]:
    """Layers by name that this version would run with no image that is here: either it or their base has changed."""
    context = build_context(container_folder())
    current: dict[str, set[str]] = {}
    found = {}
    for name, layer in engine.images(LAYER_REPOSITORY).items():
        base = layer.labels.get(BASE_LABEL, "")
        if not base or not _LAYER_NAME.fullmatch(name):
            continue  # somebody else's
        if base not in current:
            current[base] = _current_layers(engine.image(base), context)
        if name not in current[base]:
            found[name] = layer
    return found


def _current_layers(base: ImageInfo | None, context: Mapping[str, bytes]) -> set[str]:
    keys = {layer_key(base.id, context, data_stack=data_stack) for data_stack in (False, True)} if base else set()
    return {f"{LAYER_REPOSITORY}:{key}" for key in keys}


# --- the base image


def _find_base(engine: Engine, request: ImageRequest, report: Callable[[str], None]) -> str:
    """The reference of a local base image; pulls it, or makes the fallback, when there is none."""
    if engine.image(request.image) is not None:
        return request.image
    if not request.fetch:
        raise ImageUnavailable(NOT_FETCHED.format(image=request.image))
    report(f"Pulling {request.image}…")
    pull = engine.pull(request.image, first_answer_timeout=PULL_FIRST_ANSWER_TIMEOUT, timeout=PULL_TIMEOUT)
    if pull:
        return request.image
    if request.image != DEFAULT_IMAGE:
        raise ImageUnavailable(
            f"The image {request.image!r} is not on this machine and cannot be pulled: {pull.reason}. "
            "Check the name in DOCKER_IMAGE, `docker login` for a private registry, or bring it here with "
            "`docker load` or `docker build`; without DOCKER_IMAGE the default image is used."
        )
    if engine.image(FALLBACK_IMAGE) is None:
        _make_fallback(engine, request, pull.reason, report)
    return FALLBACK_IMAGE


def _make_fallback(engine: Engine, request: ImageRequest, reason: str, report: Callable[[str], None]) -> None:
    script = container_folder() / "make-base.sh"
    if not fallback.is_possible():
        raise ImageUnavailable(
            f"The image {DEFAULT_IMAGE} is not on this machine and cannot be pulled: {reason}. Do one of these: "
            f"make the registry reachable and run `docker pull {DEFAULT_IMAGE}`; bring the image from another machine "
            f"with `docker save` and `docker load`; as root on Debian or Ubuntu run `sh {script}`, which makes "
            "a base image from Debian packages; or set DOCKER_IMAGE to an image that is here and has Python >= 3.10."
        )
    report(f"{DEFAULT_IMAGE} cannot be pulled ({reason}); making a Debian base image instead (once, about a minute)…")
    output = fallback.make(script, FALLBACK_IMAGE, engine.address, request.ca_bundle, report)
    if engine.image(FALLBACK_IMAGE) is None:
        tail = "".join(f"\n  {line}" for line in output)
        raise ImageUnavailable(
            f"The image {DEFAULT_IMAGE} cannot be pulled ({reason}), and making a Debian base image failed:{tail}"
        )


# --- the layer


def _build_layer(engine: Engine, request: ImageRequest, base: str, report: Callable[[str], None]) -> str:
    found = engine.image(base)
    if found is None:
        raise ImageUnavailable(f"The image {base} vanished while it was used. Try again.")
    if found.labels.get(PROTOCOL_LABEL) == PROTOCOL:
        return found.id
    name = _layer_name(found, request)
    existing = engine.image(name)
    if existing:
        return existing.id
    report(f"Building the kernel layer on {base} (once, about a minute)…")
    started = time.monotonic()
    image_id = _build(engine, request, base, report)
    # Named only now that it is complete: a build that was broken off leaves no name behind.
    engine.tag(image_id, *name.split(":"))
    report(f"The kernel layer is ready ({time.monotonic() - started:.0f} s).")
    return image_id


def _build(engine: Engine, request: ImageRequest, base: str, report: Callable[[str], None]) -> str:
    def on_line(line: str) -> None:
        if line.startswith(SCRIPT_PREFIX):
            report(line.removeprefix(SCRIPT_PREFIX))

    networks = [request.build_network] if request.build_network else ["default", "host"]
    for network in networks:
        try:
            return engine.build(_build_request(request, base, network), on_line)
        except BuildFailed as error:
            if error.exit_code != NO_INDEX or network == networks[-1]:
                raise _explain(error, base) from error
            report("The package index cannot be reached from the engine's default network; trying the host's…")
    raise AssertionError("the loop returns or raises")


def _build_request(request: ImageRequest, base: str, network: str) -> BuildRequest:
    context = build_context(container_folder())
    if request.ca_bundle:
        try:
            context["ca-bundle.crt"] = request.ca_bundle.read_bytes()
        except OSError as error:
            raise ImageUnavailable(f"The CA bundle {request.ca_bundle} cannot be read: {error.strerror}.") from error
    arguments = {"BASE_IMAGE": base, "DATA_STACK": str(int(request.with_data_stack))}
    return BuildRequest(context, build_args=arguments, labels={BASE_LABEL: base}, network=network)


def _explain(error: BuildFailed, base: str) -> ImageUnavailable:
    """install.sh's own last line where it gave up on purpose; the log's tail for anything else."""
    said = [line.removeprefix(SCRIPT_PREFIX) for line in error.log if line.startswith(SCRIPT_PREFIX)]
    if error.exit_code not in {NO_PYTHON, NO_PIP, NO_INDEX} or not said:
        return error
    return ImageUnavailable(f"The image {base!r} cannot be used: {said[-1]}")


@contextlib.contextmanager
def _lock(folder: Path, report: Callable[[str], None]) -> Generator[None]:
    """One builder at a time, among threads and processes: each call opens the file anew, and flock tells those apart.

    The kernel releases it when the process dies.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_TIMEOUT
    waited = False
    path = folder / "image.lock"
    with open(open_private(path, None, os.O_RDWR | os.O_CREAT), "r+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"Another kernel-server has been building the image for {LOCK_TIMEOUT:g} s "
                        f"(it holds {path}). End it, or try again later."
                    ) from None
            if not waited:
                report("Waiting for another kernel-server on this machine that is building the image…")
                waited = True
            time.sleep(LOCK_POLL_INTERVAL)
        yield
