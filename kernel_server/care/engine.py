"""Checks of the Docker engine. Nothing is started; each request has a deadline, and after a failure there are no more."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_server.care.check import Check
from kernel_server.care.holes import HOLES, is_mended, is_packaged, parse_version
from kernel_server.config import Settings
from kernel_server.errors import EngineUnavailable, ImageUnavailable
from kernel_server.hosts.containers import LANDLOCK_ABI
from kernel_server.hosts.engine import Engine, EngineFacts
from kernel_server.hosts.images import NOT_FETCHED, ImageRequest, find_ready
from kernel_server.text import human_size

REQUEST_TIMEOUT = 10.0  # seconds for an answer: a person is waiting
OLDEST_API = (1, 41)  # of Docker 20.10, the oldest with which this was tried
LANDLOCK_CREATE_RULESET = 444  # system call, the same on every architecture
IMAGE_BYTES = 1_000_000_000  # about what the default image takes


@contextmanager
def connected() -> Iterator[Engine]:
    """The engine that a server with this environment would use.

    Raises:
        EngineUnavailable: there is none, or we may not talk to it.
    """
    engine = Engine.connect(timeout=REQUEST_TIMEOUT)
    try:
        yield engine
    finally:
        engine.close()


def check_engine(engine: Engine, settings: Settings) -> Iterator[Check]:
    """All checks of an engine that answers.

    Raises:
        EngineError: it does not answer any more.
    """
    facts = engine.facts()
    yield _address(engine.address, facts)
    yield _version(facts)
    yield from _holes(facts)
    yield _users(engine)
    yield _limits(facts)
    yield _profiles(facts)
    yield _landlock(settings)
    if settings.runtime:
        yield _runtime(facts, settings.runtime)
    yield from _storage(engine.address, facts, settings)
    yield _image(engine, settings)


def unreachable(error: EngineUnavailable) -> Check:
    """The same for one that does not answer."""
    return Check("FAIL", "engine", error.finding, error.remedy or "Restart it, and see its log.")


def _address(address: str, facts: EngineFacts) -> Check:
    if not address.startswith("unix://"):
        mend = "Kernels are reached over unix sockets: unset DOCKER_HOST, or let it name a local unix socket."
        return Check("FAIL", "engine", f"{address} is on another machine", mend)
    if facts.operating_system == "Docker Desktop":
        mend = "Install Docker Engine beside it (https://docs.docker.com/engine/install/), and let DOCKER_HOST name its socket."
        return Check("FAIL", "engine", f"{address} is Docker Desktop, whose virtual machine shares no sockets", mend)
    how = "named by DOCKER_HOST" if os.environ.get("DOCKER_HOST", "").strip() else "found without DOCKER_HOST"
    return Check("ok", "engine", f"answers at {address} ({how})")


def _version(facts: EngineFacts) -> Check:
    parts = [f"{name} {facts.components[name]}" for name in ("containerd", "runc") if name in facts.components]
    finding = ", ".join([f"Docker {facts.version} (API {facts.api_version})", *parts])
    api = parse_version(facts.api_version)
    if api is None or api[:2] < OLDEST_API:
        return Check("warn", "version", finding, "kernel-server was never tried with one before 20.10: update it.")
    return Check("ok", "version", finding)


def _holes(facts: EngineFacts) -> Iterator[Check]:
    found = False
    for hole in HOLES:
        text = facts.components.get(hole.component, facts.version if hole.component == "engine" else "")
        version = parse_version(text)
        if version is not None and is_mended(version, hole.fixed):
            continue
        found = True
        mend = f"Update {'Docker' if hole.component == 'engine' else hole.component} to {' or '.join(hole.fixed)}, or newer."
        if is_packaged(text):
            mend += f" If its package has the fix already (see its changelog), {text} is fine."
        yield Check(
            "warn", "known holes", f"{hole.component} {text or '(version unknown)'}: {hole.names}: {hole.what}", mend
        )
    if not found:
        yield Check("ok", "known holes", "none of those that this version of kernel-server knows")


def _users(engine: Engine) -> Check:
    info = engine.info()
    if info.userns_remap:
        mend = "Use a rootless engine, or one without userns-remap (`userns-remap` in /etc/docker/daemon.json)."
        return Check("FAIL", "users", "the engine maps user ids: server and container could share no sockets", mend)
    if info.rootless:
        return Check("ok", "users", "rootless: root of a container is an ordinary user of this machine")
    return Check("ok", "users", "the engine runs as root: who may use it can become root; sessions cannot use it")


def _limits(facts: EngineFacts) -> Check:
    cgroup = f"cgroup v{facts.cgroup_version}, driver {facts.cgroup_driver}"
    if facts.without:
        finding = f"{cgroup}: cannot limit {', '.join(facts.without)} of a container"
        mend = (
            "Rootless: use cgroup v2 with systemd (https://rootlesscontaine.rs/getting-started/common/cgroup2/); "
            "else turn the controller on at boot, such as `cgroup_enable=memory swapaccount=1`."
        )
        return Check("warn", "limits", finding, mend)
    return Check("ok", "limits", f"{cgroup}: memory, swap, processes and CPUs of a container can be limited")


def _profiles(facts: EngineFacts) -> Check:
    seccomp = facts.security.get("seccomp")
    others = [name for name in ("apparmor", "selinux") if name in facts.security]
    finding = f"seccomp {seccomp or 'on'}, {' and '.join(others) or 'neither apparmor nor selinux'}"
    if seccomp is None or seccomp == "unconfined":
        mend = (
            "Use a kernel and an engine with seccomp, and no `seccomp-profile: unconfined` in /etc/docker/daemon.json."
        )
        return Check("warn", "profiles", "no seccomp: sessions can make every system call", mend)
    return Check("ok", "profiles", finding)


def _landlock(settings: Settings) -> Check:
    version = max(0, ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1))  # landlock(7)
    if version >= LANDLOCK_ABI:
        return Check("ok", "Landlock", f"ABI {version}: restricts files, TCP and signals of sessions")
    finding = (
        f"ABI {version} restricts only a part of sessions" if version else "none: user ids alone separate sessions"
    )
    mend = "Linux 6.12 or newer has all that is used of it; `lsm=` on the kernel's command line must name landlock."
    return Check("FAIL" if settings.isolation == "strict" else "warn", "Landlock", finding, mend)


def _runtime(facts: EngineFacts, runtime: str) -> Check:
    if runtime in facts.runtimes:
        return Check("ok", "runtime", f"{runtime} is known to the engine")
    mend = f"Install it and name it in /etc/docker/daemon.json, or choose another PY_EXEC_RUNTIME: {', '.join(facts.runtimes)}."
    return Check("FAIL", "runtime", f"the engine has no runtime {runtime}", mend)


def _storage(address: str, facts: EngineFacts, settings: Settings) -> Iterator[Check]:
    if facts.storage_driver == "vfs":
        mend = "Use overlay2 (https://docs.docker.com/engine/storage/drivers/select-storage-driver/)."
        yield Check("warn", "storage", "vfs: every container takes a whole copy of its image", mend)
    else:
        yield Check("ok", "storage", facts.storage_driver)
    root = Path(facts.root_folder)
    if not address.startswith("unix://") or not root.is_absolute() or not os.path.isdir(root):
        yield Check("ok", "engine's disk", f"{root} cannot be seen from here; `docker system df` says what is used")
        return
    yield check_disk("engine's disk", root, IMAGE_BYTES, max(2 * IMAGE_BYTES, settings.workspace_size))


def check_disk(what: str, folder: Path, least: int, enough: int) -> Check:
    """How much is free: FAIL below `least` bytes, warn below `enough`."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("warn", what, f"{folder}: {error.strerror}", "Check it by hand.")
    finding = f"{human_size(free)} free in {folder}"
    if free >= enough:
        return Check("ok", what, finding)
    mend = "Free some: `kernel-server clean`, then `docker system df` and `docker image prune`."
    return Check("FAIL" if free < least else "warn", what, f"only {finding}", mend)


def _image(engine: Engine, settings: Settings) -> Check:
    request = ImageRequest(settings.state_dir, settings.image)
    try:
        ready = find_ready(engine, request)
    except ImageUnavailable as error:
        return Check("FAIL", "image", str(error))
    if ready:
        return Check("ok", "image", f"ready for {settings.image}: {ready.removeprefix('sha256:')[:12]}")
    if engine.image(settings.image):
        finding = f"{settings.image} is here, its kernel layer is not: the first session waits a minute or so for it"
    elif not settings.fetches_image:
        return Check("FAIL", "image", NOT_FETCHED.format(image=settings.image))
    else:
        finding = f"{settings.image} is not here: the first session waits until it is pulled and built upon"
    return Check("warn", "image", finding, "`kernel-server build` does it now.")
