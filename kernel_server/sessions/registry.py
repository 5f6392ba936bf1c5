"""All sessions of this server and the kernel host under them."""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio
import zmq.asyncio
from anyio.abc import TaskGroup

from kernel_server.errors import (
    HostLost,
    KernelServerError,
    SessionClosed,
    SessionError,
    SessionExpired,
    SessionLimit,
    SessionUnknown,
)
from kernel_server.hosts.base import KernelHost, Report
from kernel_server.kernels.connection import zmq_context
from kernel_server.sessions.pool import Pool
from kernel_server.sessions.session import Session
from kernel_server.tasks import running
from kernel_server.transcripts.journal import JournalFolder

logger = logging.getLogger(__name__)

MAX_ENDED = 10_000  # ids of ended sessions that get a precise error
EXPIRY_CHECK_SECONDS = 5.0
SPARE_MEMORY = 0.75  # of the container's limit: spare sessions go when more than that is used
WAIT_REPORT_SECONDS = 2.0

MakeHost = Callable[[Report], AbstractAsyncContextManager[KernelHost]]
OnWait = Callable[[str], Awaitable[None]]
"""Told every few seconds, with a line for a person, while a call waits for the container."""


@dataclass(frozen=True)
class Limits:
    """TTL in seconds, how many sessions there may be, and how many spare ones stand ready."""

    ttl: float
    maximum: int
    spare: int = 0


@dataclass
class _HostLife:
    """A kernel host from its start to its end."""

    ready: anyio.Event = field(default_factory=anyio.Event)
    stop: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)
    host: KernelHost | None = None
    failure: KernelServerError | None = None
    latest: str = "Starting the container"


class Registry:
    """Makes, finds and ends sessions; starts the kernel host with the first of them. `open_registry` makes one."""

    def __init__(
        self,
        make_host: MakeHost,
        limits: Limits,
        journals: JournalFolder,
        context: zmq.asyncio.Context,
        tasks: TaskGroup,
    ) -> None:
        self.limits = limits
        self.journals = journals
        self._make_host = make_host
        self._context = context
        self._tasks = tasks
        self._life: _HostLife | None = None
        self._sessions: dict[str, Session] = {}
        self._ended: OrderedDict[str, SessionError] = OrderedDict()
        self._opening = 0
        self._starting: Session | None = None  # the spare one that is not ready yet
        self._pool = Pool(limits.spare, self._start_spare, self._end_spare, self._has_memory)

    # -- the kernel host -------------------------------------------------------------------------------------------

    async def host(self, on_wait: OnWait | None = None) -> KernelHost:
        """The kernel host, started if need be; concurrent first calls start one.

        Raises:
            KernelServerError: it did not start; the next call tries again.
        """
        life = self._life
        if life is None:
            life = self._life = _HostLife()
            self._tasks.start_soon(self._hold_host, life)
        while not life.ready.is_set():
            with anyio.move_on_after(WAIT_REPORT_SECONDS):
                await life.ready.wait()
            if on_wait is not None and not life.ready.is_set():
                await on_wait(life.latest)
        if life.host is None:
            raise life.failure or HostLost("The container did not start.")
        return life.host

    @property
    def python(self) -> str:
        """Version of the kernels' Python; "" while no container runs."""
        return self._life.host.description.python if self._life and self._life.host else ""

    async def _hold_host(self, life: _HostLife) -> None:
        def report(line: str) -> None:
            life.latest = line
            logger.info("%s", line)

        try:
            async with self._make_host(report) as host:
                life.host = host
                life.ready.set()

                async def watch() -> None:
                    await self._follow_deaths(host)
                    if self._life is life:
                        self._life = None  # calls from now on start a new one
                    await self._end_all("the end of its container, which was killed or crashed", clear=False)
                    life.stop.set()

                async with running(watch, self._pool.keep_filled):
                    await life.stop.wait()
        except KernelServerError as error:
            logger.warning("the kernel host failed: %s", error)
            life.failure = error
        except Exception as error:
            logger.exception("the kernel host failed")
            life.failure = HostLost(f"The container could not be started ({type(error).__name__}: {error}).")
        finally:
            if self._life is life:
                self._life = None
            life.ready.set()
            life.over.set()

    async def _follow_deaths(self, host: KernelHost) -> None:
        async for death in host.deaths():
            if session := self._sessions.get(death.session_id):
                session.on_death(death)
            elif self._starting and self._starting.session_id == death.session_id:
                self._starting.on_death(death)
            elif spare := self._pool.find(death.session_id):
                self._tasks.start_soon(self._pool.drop, spare)
        if self._sessions:
            logger.error("the container has ended")

    async def reset(self, on_wait: OnWait | None = None) -> int:
        """Ends every session and the container, and starts a fresh one; returns how many sessions it ended."""
        count = len(self._sessions)
        await self.shut_down("reset")
        await self.host(on_wait)
        return count

    async def shut_down(self, how: str) -> None:
        """Ends every session and the container; calls in flight fail with a clear error."""
        life, self._life = self._life, None  # calls from now on start a new one
        await self._end_all(how, clear=False)
        if life is not None:
            life.stop.set()
            await life.over.wait()

    async def _end_all(self, how: str, *, clear: bool) -> None:
        async with anyio.create_task_group() as tasks:
            for session in [*self._sessions.values(), *self._pool.drain()]:
                ending = SessionClosed(session.session_id, how)
                tasks.start_soon(self._end, session, ending, clear)

    # -- sessions --------------------------------------------------------------------------------------------------

    async def open(self, on_wait: OnWait | None = None) -> Session:
        """A new session with its kernel ready.

        Raises:
            SessionLimit: there are as many as allowed.
            KernelServerError: the container or the kernel did not start.
        """
        if len(self._sessions) + self._opening >= self.limits.maximum:
            idle = sorted(((s.idle_seconds, s.session_id) for s in self._sessions.values()), reverse=True)
            raise SessionLimit(self.limits.maximum, [(name, seconds) for seconds, name in idle if seconds > 0])
        self._opening += 1
        try:
            host = await self.host(on_wait)
            session = self._pool.take() or self._make(host)
            self._sessions[session.session_id] = session
        finally:
            self._opening -= 1
        async with self._ended_if_it_fails(session), session.in_use():
            await session.wait_spawned()
        session.begun = time.monotonic()
        return session

    def _make(self, host: KernelHost, *, warm: bool = False) -> Session:
        session_id = secrets.token_hex(16)  # 128 bits: the id is all that a client needs to use the session
        session = Session(session_id, host, self._context, self.journals.journal(session_id), warm=warm)
        self._tasks.start_soon(self._run_session, session)
        return session

    def _present_host(self) -> KernelHost:
        """The host that there is; for spare sessions none is started."""
        if self._life is None or self._life.host is None:
            raise HostLost("The container is about to end.")
        return self._life.host

    async def _start_spare(self) -> Session:
        session = self._starting = self._make(self._present_host(), warm=True)
        async with self._ended_if_it_fails(session):
            await session.wait_ready()
        self._starting = None
        return session

    @asynccontextmanager
    async def _ended_if_it_fails(self, session: Session) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await self._end(session, SessionClosed(session.session_id, "a failed start"), clear=True)
            raise

    async def _end_spare(self, session: Session) -> None:
        await self._end(session, SessionClosed(session.session_id, "a lack of memory"), clear=True)

    async def _has_memory(self) -> bool:
        used, limit = await self._present_host().memory()
        return not limit or used < limit * SPARE_MEMORY

    async def _run_session(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:  # one session's trouble must not end the server and with it all others
            logger.exception("session %s failed", session.session_id)
            await self._end(session, SessionClosed(session.session_id, "an internal error"), clear=False)

    def get(self, session_id: str) -> Session:
        """The session of that id.

        Raises:
            SessionError: it is unknown, closed or expired, each with its own class.
        """
        if session := self._sessions.get(session_id):
            return session
        raise self._ended.get(session_id) or SessionUnknown(session_id)

    @property
    def sessions(self) -> list[Session]:
        """Those that there are now, in the order of their beginning."""
        return list(self._sessions.values())

    def end_one_shot(self, session: Session) -> None:
        """Ends a session that was made for one call, whose result need not wait for it."""
        ending = SessionClosed(session.session_id, "the end of its one-shot call")
        self._forget(session, ending)
        self._tasks.start_soon(self._end, session, ending, True)

    async def close(self, session_id: str) -> None:
        """Ends a session and removes its workspace.

        Raises:
            SessionError: there is no such session.
        """
        await self._end(self.get(session_id), SessionClosed(session_id, "close_session"), clear=True)

    async def _end(self, session: Session, ending: SessionError, clear: bool) -> None:
        with anyio.CancelScope(shield=True):
            await session.close(ending, clear=clear)
        self._forget(session, ending)

    def _forget(self, session: Session, ending: SessionError) -> None:
        if self._sessions.pop(session.session_id, None):
            self._ended[session.session_id] = ending
            while len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    async def expire_idle_sessions(self) -> None:
        """Ends sessions that nobody has used for the TTL, for ever."""
        while True:
            await anyio.sleep(min(EXPIRY_CHECK_SECONDS, self.limits.ttl / 4))
            for session in list(self._sessions.values()):
                if session.idle_seconds > self.limits.ttl:
                    logger.info("session %s expired", session.session_id)
                    await self._end(session, SessionExpired(session.session_id, self.limits.ttl), clear=True)


@asynccontextmanager
async def open_registry(make_host: MakeHost, limits: Limits, journals: JournalFolder) -> AsyncIterator[Registry]:
    """A registry whose sessions and container end with the block."""
    with suppress(OSError):
        journals.sweep()
    with zmq_context() as context:
        async with running() as tasks:
            registry = Registry(make_host, limits, journals, context, tasks)
            tasks.start_soon(registry.expire_idle_sessions)
            try:
                yield registry
            finally:
                with anyio.CancelScope(shield=True):
                    await registry.shut_down("the end of the server")
