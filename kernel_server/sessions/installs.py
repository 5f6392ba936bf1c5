"""Packages for a session that has no network: found and fetched here, installed there. It needs no turn of the kernel."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from weakref import WeakKeyDictionary

import anyio
from anyio.abc import TaskGroup
from packaging.requirements import Requirement

from kernel_server.errors import EngineError, KernelError, KernelServerError, PackageError, RequestError
from kernel_server.files.transfer import open_to_send
from kernel_server.hosts.base import InstalledPackage
from kernel_server.kernels.outputs import Outputs, Stream
from kernel_server.packages.download import download
from kernel_server.packages.environment import Environment
from kernel_server.packages.requirements import Allowed, read_requirements
from kernel_server.packages.resolve import Plan, resolve
from kernel_server.packages.sources import Sources
from kernel_server.sessions.session import OnProgress, Session
from kernel_server.text import counted, human_size
from kernel_server.transcripts.records import JournaledCell

logger = logging.getLogger(__name__)

AT_A_TIME = 2  # resolutions and downloads of all sessions together; a session has no part in how long these take
PROGRESS_SECONDS = 4.0  # between two notifications
LEFT_SECONDS = 3600.0  # an older folder is one whose server was killed
WHEELS = "wheels"
IMPORTED = (
    "{names} had been imported before: this kernel keeps the old version. To use the new one, call exit() in a cell "
    "(variables are lost), then run your imports again in the fresh kernel."
)
PRELOADED = (
    "{names}: every kernel has it imported from the start and keeps the version of the image; programs that you start, such "
    "as with !python script.py, get the new one."
)
UNREACHED = "The kernel did not answer. If an import fails, run importlib.invalidate_caches() first."


@dataclass(frozen=True)
class Installed:
    """What came of it.

    Attributes:
        notes: what the model has to know beside, each a sentence or two.
    """

    plan: Plan
    notes: list[str]


@dataclass(eq=False)
class Install:
    """An installation that is under way, or that nobody has asked for the outcome of yet.

    Attributes:
        asked: what it is for, in the words of the call.
        stage: what it does just now.
    """

    asked: list[str]
    stage: str = "looking for versions that fit"
    begun: float = field(default_factory=time.monotonic)
    done: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    installed: Installed | None = None
    failure: KernelServerError | None = None

    @property
    def seconds(self) -> float:
        """For how long it has been going on."""
        return time.monotonic() - self.begun


class Installer:
    """Installs packages for all sessions; `open_installer` makes one.

    Attributes:
        allowed: which packages may be installed.
    """

    def __init__(self, tasks: TaskGroup, allowed: Allowed, folder: Path, ca_file: Path | None) -> None:
        self.allowed = allowed
        self._tasks = tasks
        self._folder = folder
        self._sources = Sources(ca_file)
        self._limiter = anyio.CapacityLimiter(AT_A_TIME)
        self._installs: WeakKeyDictionary[Session, Install] = WeakKeyDictionary()
        self._places: WeakKeyDictionary[Session, anyio.Lock] = WeakKeyDictionary()

    async def install(
        self, session: Session, packages: list[str], seconds: float, on_progress: OnProgress
    ) -> Installed | Install:
        """Installs packages; after `seconds`, what is under way is returned, and the same call goes on waiting for it.

        To be cancelled ends the installation.

        Raises:
            RequestError: the packages are not what may be installed, or others are being installed.
            PackageError, EngineError, KernelError: it failed.
            SessionError: the session was ended meanwhile.
        """
        requirements = read_requirements(packages, self.allowed)
        install = self._installs.get(session)
        if install is not None and install.asked != packages:
            if not install.done.is_set():
                raise RequestError(
                    f"{', '.join(install.asked)} is being installed in this session just now ({install.stage}). "
                    "Call install_packages with exactly these to wait for it, and then with the others."
                )
            install = None
        if install is None:
            install = self._installs[session] = Install(list(packages))
            self._tasks.start_soon(self._work, session, requirements, install)
        try:
            await _wait(install, seconds, on_progress)
        except anyio.get_cancelled_exc_class():
            install.scope.cancel()
            self._installs.pop(session, None)
            raise
        if not install.done.is_set():
            return install
        self._installs.pop(session, None)
        if install.installed is None:
            stopped = PackageError("The installation was stopped. Call install_packages again.")
            raise install.failure.again() if install.failure else stopped
        return install.installed

    async def _work(self, session: Session, requirements: Sequence[Requirement], install: Install) -> None:
        try:
            with install.scope:
                # One place for each session, also while what was cancelled is still coming to its end.
                async with session.in_use(changes=True), self._places.setdefault(session, anyio.Lock()):
                    install.installed = await self._install(session, requirements, install)
        except KernelServerError as error:
            install.failure = session.ending or error  # where it has been ended, that is the reason
        except OSError as error:
            failed = PackageError(
                f"The installation failed on the server: {error.strerror}. Call install_packages again."
            )
            install.failure = session.ending or failed
        except Exception as error:  # it must not end the installations of other sessions
            logger.exception("session %s: packages could not be installed", session.session_id)
            install.failure = PackageError(f"The installation failed inside the server: {type(error).__name__}.")
        finally:
            install.done.set()

    async def _install(self, session: Session, requirements: Sequence[Requirement], install: Install) -> Installed:
        begun = datetime.now(timezone.utc)
        with _working_folder(self._folder) as folder:
            (folder / "configuration").mkdir()
            environment = await session.host.environment(session.session_id)
            async with self._limiter:
                plan = await self._fetch(session, requirements, install, environment, folder)
            if not plan.wanted:
                return Installed(plan, [])
            install.stage = "unpacking in the session"
            with _opened(folder) as descriptor, open_to_send(descriptor, WHEELS) as sending:

                def tar(uid: int) -> Iterator[bytes]:
                    yield from sending.tar(uid)
                    shutil.rmtree(folder / WHEELS, ignore_errors=True)  # a session may take long to unpack its copy

                found = await session.host.install(session.session_id, tar, WHEELS)
        notes = await _tell_kernel(session, plan, found)
        session.record_between(_journaled(session, plan, notes, begun))
        return Installed(plan, notes)

    async def _fetch(
        self,
        session: Session,
        requirements: Sequence[Requirement],
        install: Install,
        environment: Environment,
        folder: Path,
    ) -> Plan:
        """Finds out what has to come, and fetches it into `folder`."""
        variables = await self._sources.environment(folder / "configuration")
        plan = await resolve(requirements, environment, folder, variables, trust_session=self.allowed.names is None)
        if plan.wanted:
            install.stage = f"fetching {counted(len(plan.wanted), 'package')}"

            def on_size(size: int) -> None:
                session.check_open()
                install.stage = f"fetching {counted(len(plan.wanted), 'package')}, {human_size(size)} so far"

            await download(plan.wanted, environment, folder, variables, on_size)
        return plan


@asynccontextmanager
async def open_installer(allowed: Allowed, folder: Path, ca_file: Path | None) -> AsyncIterator[Installer]:
    """An installer for the length of the block; what is under way ends with it.

    Args:
        folder: where wheels are until they are in a session; made when there is something to install.
        ca_file: PEM file of the authorities to trust, where pip has none.
    """
    async with anyio.create_task_group() as tasks:
        try:
            yield Installer(tasks, allowed, folder, ca_file)
        finally:
            tasks.cancel_scope.cancel()


async def _wait(install: Install, seconds: float, on_progress: Callable[[float, str], Awaitable[None]]) -> None:
    with anyio.move_on_after(seconds):
        while not install.done.is_set():
            with anyio.move_on_after(PROGRESS_SECONDS):
                await install.done.wait()
                return
            await on_progress(install.seconds, install.stage)


async def _tell_kernel(session: Session, plan: Plan, found: list[InstalledPackage]) -> list[str]:
    """Makes the running kernel look for modules anew, also while it runs a cell; returns what cannot take effect in it."""
    replaced = [package for package in found if package.name in plan.replaced]
    preloaded = [package.name for package in replaced if package.preloaded]
    modules = {module: package.name for package in replaced if not package.preloaded for module in package.modules}
    notes = [PRELOADED.format(names=", ".join(preloaded))] if preloaded else []
    expression = (
        f"(__import__('importlib').invalidate_caches(), "
        f"[name for name in {list(modules)!r} if name in __import__('sys').modules])[1]"
    )
    try:
        look = await session.look(expression)
    except (KernelError, EngineError):  # a kernel that is just being started finds them anyway
        return [*notes, UNREACHED]
    if look.error:
        return [*notes, UNREACHED]
    imported = {modules[name] for name in re.findall(r"'(\w+)'", look.text) if name in modules}
    return [*notes, IMPORTED.format(names=", ".join(sorted(imported)))] if imported else notes


def _journaled(session: Session, plan: Plan, notes: list[str], begun: datetime) -> JournaledCell:
    """What the notebook shows: a cell that does the same where there is a network."""
    pins = [f"{name}=={version}" for name, version in plan.wanted.items()]
    return JournaledCell(
        source=f"%pip install {' '.join(pins)}",
        outputs=Outputs([Stream("stdout", "Installed by install_packages.\n")]),
        execution_count=0,
        status="ok",
        generation=session.generation,
        begun=begun,
        ended=datetime.now(timezone.utc),
        notes=notes,
    )


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _working_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder that is removed afterwards; so are those that killed servers have left."""
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in parent.iterdir():
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left)
    folder = parent / secrets.token_hex(8)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
