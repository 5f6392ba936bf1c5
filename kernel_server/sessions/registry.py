"""All sessions of this server."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup

from kernel_server.errors import (
    EngineError,
    KernelError,
    SessionClosed,
    SessionError,
    SessionExpired,
    SessionLeft,
    SessionLimit,
    SessionNotKept,
    SessionUnknown,
)
from kernel_server.hosts.base import Death, KernelHost, KernelHosts, SessionRecord
from kernel_server.kernels.sockets import Context
from kernel_server.sessions.checkpoints import Checkpoint, Checkpoints, Origin
from kernel_server.sessions.fleet import Fleet, OnWait
from kernel_server.sessions.pool import Pool
from kernel_server.sessions.session import CLEAR_SECONDS, Session
from kernel_server.sessions.takeover import Takeover
from kernel_server.tasks import running
from kernel_server.transcripts.folder import JournalFolder
from kernel_server.transcripts.journal import Journal

logger = logging.getLogger(__name__)

MAX_ENDED = 10_000  # ids of ended sessions that get a precise error
EXPIRY_CHECK_SECONDS = 5.0
SYNC_SECONDS = 1.0
SWEEP_SECONDS = 3600.0
READERS = 4  # at a time, of journals: each may hold some copies of a cell of 40 MB


@dataclass(frozen=True)
class Limits:
    """TTL in seconds, how many sessions there may be, spare ones, and how many in one kernel host (0: all).

    `checkpoints` and `automatic_checkpoints` are how many of each a session may have. With `keep`, sessions are left to a later server. `notebook_ttl` is how long journals are kept, in seconds.
    """

    ttl: float
    maximum: int
    spare: int = 0
    per_host: int = 0
    keep: bool = False
    checkpoints: int = 8
    automatic_checkpoints: int = 0
    notebook_ttl: float = math.inf


class Registry:
    """Makes, finds and ends sessions; the first of them starts a container. `open_registry` makes one.

    Attributes:
        journals: of all sessions.
        readers: for threads that read journals.
        on_change: told when `sessions` has changed.
        leaves_sessions: the server is about to end, and what runs in sessions is to go on.
    """

    def __init__(
        self,
        hosts: KernelHosts,
        limits: Limits,
        journals: JournalFolder,
        context: Context,
        tasks: TaskGroup,
    ) -> None:
        self.limits = limits
        self.journals = journals
        self.readers = anyio.CapacityLimiter(READERS)
        self.on_change: Callable[[], None] = lambda: None
        self._context = context
        self._tasks = tasks
        self._hosts = hosts
        self._fleet = Fleet(hosts, limits.per_host, tasks, self._on_death, self._on_lost)
        self._takeover = Takeover(hosts, self._fleet, self._go_on, self._give_up)
        self._sessions: dict[str, Session] = {}
        self._ended: OrderedDict[str, SessionError] = OrderedDict()
        self._opening = 0
        self.leaves_sessions = False
        self._starting: Session | None = None  # the spare one that is not ready yet
        self._pool = Pool(self._spares_wanted, self._start_spare, self._end_spare)

    # -- kernel hosts ----------------------------------------------------------------------------------------------

    async def host(self, on_wait: OnWait | None = None) -> KernelHost:
        """Some kernel host, for what needs no session; started if need be.

        Raises:
            KernelServerError: it did not start; the next call tries again.
        """
        await self._takeover.complete.wait()
        return await self._fleet.any(on_wait)

    def _go_on(self, host: KernelHost, record: SessionRecord, found: Death | int) -> None:
        session = self._session(record.session_id, host)
        session.go_on(record, found)
        self._sessions[record.session_id] = session
        self.on_change()
        self._tasks.start_soon(self._run_session, session)
        logger.info("session %s goes on", record.session_id)

    def _give_up(self, session_id: str, why: str) -> None:
        self._ended[session_id] = SessionNotKept(session_id, why)

    async def _hold(self, host: KernelHost) -> None:
        """Has a host with sessions go on for a later server if this one is killed."""
        if self.leaves_sessions:
            return
        try:
            await host.hold(sessions=any(session.host is host for session in self._sessions.values()))
        except (KernelError, EngineError) as error:
            logger.info("a container will not wait for a later server: %s", error)

    @property
    def python(self) -> str:
        """Version of the kernels' Python; "" before the first container."""
        return self._fleet.python

    def _on_death(self, death: Death) -> None:
        if session := self._sessions.get(death.session_id):
            session.on_death(death)
        elif self._starting and self._starting.session_id == death.session_id:
            self._starting.on_death(death)
        elif spare := self._pool.remove(death.session_id):
            self._tasks.start_soon(self._end_spare, spare)

    async def _on_lost(self, host: KernelHost) -> None:
        await self._end_all("the end of its container, which was killed or crashed", host)

    async def reset(self, on_wait: OnWait | None = None) -> int:
        """Ends every session and the container, and starts a fresh one; returns how many sessions it ended."""
        sessions = await self.all()
        async with anyio.create_task_group() as tasks:  # what has finished while no server was there is recorded first
            for session in sessions:
                tasks.start_soon(session.wait_resumed)
        count = len(self._sessions)
        await self.shut_down("reset")
        await self._fleet.any(on_wait)
        return count

    async def shut_down(self, how: str) -> None:
        """Ends every session and the container; calls in flight fail with a clear error."""
        end_hosts = self._fleet.renew()
        await self._end_all(how)
        await end_hosts()

    def prepare_to_leave(self) -> None:
        """The client is gone: calls that are cancelled from now on do not stop their cells, if sessions are to be kept."""
        self.leaves_sessions = self.limits.keep

    async def leave(self) -> None:
        """The server ends: hosts that have sessions are left to a later one, if they are to be kept; all else ends."""
        self.prepare_to_leave()
        self._takeover.close()
        if self.leaves_sessions:
            await self._leave_sessions()
        await self.shut_down("the end of the server")

    async def _leave_sessions(self) -> None:
        hosts = {session.host for session in self._sessions.values()}
        kept = {host for host in hosts if host.keep()}
        async with anyio.create_task_group() as tasks:
            for spare in [spare for host in kept for spare in self._pool.drain(host)]:
                tasks.start_soon(self._end_spare, spare)
            for session in self._sessions.values():
                if session.host in kept:
                    tasks.start_soon(self._end, session, SessionLeft(session.session_id, self.limits.ttl), False)

    async def _end_all(self, how: str, host: KernelHost | None = None) -> None:
        """Ends all sessions, or those of one host; what they own goes with their container."""
        async with anyio.create_task_group() as tasks:
            for session in [*self._sessions.values(), *self._pool.drain(host)]:
                if host is None or session.host is host:
                    tasks.start_soon(self._end, session, SessionClosed(session.session_id, how), False)

    # -- sessions --------------------------------------------------------------------------------------------------

    async def open(self, on_wait: OnWait | None = None) -> Session:
        """A new session with its kernel ready.

        Raises:
            SessionLimit: there are as many as allowed.
            KernelServerError: the container or the kernel did not start.
        """
        await self._takeover.complete.wait()
        self._check_room(1)
        self._opening += 1
        try:
            session = self._pool.take() or self._make(await self._fleet.place(on_wait))
            self._sessions[session.session_id] = session
            self.on_change()
        finally:
            self._opening -= 1
        async with self._ended_if_it_fails(session), session.in_use():
            await session.wait_spawned()
        session.begun = time.monotonic()
        session.remember()
        self._tasks.start_soon(self._hold, session.host)
        self._pool.refill()
        return session

    def _check_room(self, count: int) -> None:
        if len(self._sessions) + self._opening + count > self.limits.maximum:
            idle = sorted(((s.idle_seconds, s.session_id) for s in self._sessions.values()), reverse=True)
            raise SessionLimit(self.limits.maximum, [(name, seconds) for seconds, name in idle if seconds > 0])

    def _make(self, host: KernelHost, *, warm: bool = False) -> Session:
        session = self._session(_new_id(), host, warm=warm)
        self._tasks.start_soon(self._run_session, session)
        return session

    def _session(self, session_id: str, host: KernelHost, *, warm: bool = False) -> Session:
        checkpoints = Checkpoints(self.limits.checkpoints, self.limits.automatic_checkpoints)
        journal = self.journals.journal(session_id)
        return Session(session_id, host, self._context, journal, checkpoints=checkpoints, warm=warm)

    async def branch(
        self, session_id: str, checkpoint: str, count: int, wait: float
    ) -> tuple[Checkpoint, list[Session]]:
        """New sessions that are what another one is, or was at a checkpoint; all of them, or none.

        Args:
            wait: at most so many seconds for the cells of that session that were sent before.

        Raises:
            SessionLimit: there would be more than allowed.
            CheckpointError: it cannot be branched.
            SessionError, KernelServerError: as `find` and `Session.checkpoint`.
        """
        origin = await self.find(session_id)
        branches: list[Session] = []
        try:
            async with origin.branching(checkpoint, wait) as point:
                self._check_room(count)
                self._opening += count
                try:
                    while len(branches) < count:
                        branches.append(await self._branch(origin, point))
                        self._opening -= 1
                finally:
                    self._opening -= count - len(branches)
                for branch in branches:
                    await branch.wait_ready()
            await anyio.lowlevel.checkpoint()  # who asked may have given up meanwhile, and never learn of them
        except BaseException:
            await self._end_branches(branches)
            raise
        for branch in branches:
            branch.remember()
        self.on_change()
        return point, branches

    async def _branch(self, origin: Session, point: Checkpoint) -> Session:
        """A new session; where that fails or is cancelled, the kernel host has nothing of it."""
        branch = self._session(_new_id(), origin.host)
        try:
            with anyio.CancelScope(
                shield=True
            ):  # a kernel host that is asked to clear half a branch forgets the other half
                launched = await origin.host.branch(origin.session_id, point.key, branch.session_id)
            await anyio.lowlevel.checkpoint()
            branch.begin_as(launched, Origin(origin.session_id, point.execution_count))
            await branch.begin_journal(self.journals, point.journaled)
        except BaseException:
            with anyio.move_on_after(CLEAR_SECONDS, shield=True), suppress(KernelError, EngineError):
                await origin.host.clear(branch.session_id)
            await self._discard_journal(branch)
            raise
        self._fleet.enter(origin.host)
        self._sessions[branch.session_id] = branch
        self._tasks.start_soon(self._run_session, branch)
        return branch

    async def _end_branches(self, branches: list[Session]) -> None:
        """Ends those that nobody will learn of."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for branch in branches:
                    tasks.start_soon(self._end, branch, SessionClosed(branch.session_id, "a failed start"), True)
            for branch in branches:
                await self._discard_journal(branch)

    async def _discard_journal(self, branch: Session) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(branch.journal.discard)

    async def _start_spare(self) -> Session:
        session = self._starting = self._make(await self._fleet.place(), warm=True)
        try:
            async with self._ended_if_it_fails(session):
                await session.wait_ready()
        finally:
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

    async def _spares_wanted(self) -> int:
        """None before somebody has used the server, and while memory is short."""
        if not self._fleet.begun:
            return 0
        host = await self._fleet.any()
        return 0 if await host.is_short_of_memory() else self.limits.spare

    async def _run_session(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:  # one session's trouble must not end the server and with it all others
            logger.exception("session %s failed", session.session_id)
            await self._end(session, SessionClosed(session.session_id, "an internal error"), clear=False)
        finally:
            self._fleet.leave(session.host)

    def get(self, session_id: str) -> Session:
        """The session of that id.

        Raises:
            SessionError: it is unknown, closed or expired, each with its own class.
        """
        if session := self._sessions.get(session_id):
            return session
        ending = self._ended.get(session_id)
        raise ending.again() if ending else SessionUnknown(session_id, self._hosts.whereabouts(session_id))

    async def find(self, session_id: str) -> Session:
        """The same once it is known what earlier servers have left, and what runs in the session."""
        await self._takeover.complete.wait()
        if session_id not in self._sessions and session_id not in self._ended:
            await self._takeover.look_for(session_id)
        session = self.get(session_id)
        await session.wait_resumed()
        return session

    async def find_journal(self, session_id: str) -> Journal:
        """The journal of a session, also of one that has ended; of one in which nothing has run, it has no cells.

        Raises:
            SessionError: the id is not one of a session, or of one that ended and left no journal; JournalRemoved: it was
                removed.
        """
        await self._takeover.complete.wait()
        if session := self._sessions.get(session_id):
            await session.wait_resumed()
        journal = await anyio.to_thread.run_sync(self.journals.find, session_id)
        if journal is None:
            if session_id not in self._sessions:
                await anyio.to_thread.run_sync(self.journals.check_not_removed, session_id)
            self.get(session_id)
            journal = self.journals.journal(session_id)
        return journal

    async def all(self) -> list[Session]:
        """`sessions` once it is known what earlier servers have left."""
        await self._takeover.complete.wait()
        return self.sessions

    @property
    def sessions(self) -> list[Session]:
        """Those that there are now, in the order of their beginning."""
        return list(self._sessions.values())

    def end_one_shot(self, session: Session) -> None:
        """Ends a session that was made for one call, whose result need not wait for it."""
        ending = SessionClosed(session.session_id, "the end of its one-shot call")
        self._forget(session, ending)
        self._tasks.start_soon(self._end, session, ending, True)

    async def close(self, session_id: str) -> str:
        """Ends a session and removes its workspace; returns why something of it is still there, "" if nothing is.

        Raises:
            SessionError: there is no such session.
        """
        session = await self.find(session_id)
        await self._end(session, SessionClosed(session_id, "close_session"), clear=True)
        return session.leftovers

    async def _end(self, session: Session, ending: SessionError, clear: bool) -> None:
        with anyio.CancelScope(shield=True):
            await session.close(ending, clear=clear)
        self._forget(session, ending)

    def _forget(self, session: Session, ending: SessionError) -> None:
        if self._sessions.pop(session.session_id, None):
            self.on_change()
            self._tasks.start_soon(self._hold, session.host)
            self._ended[session.session_id] = ending.again()
            while len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    async def keep_spares(self) -> None:
        """Keeps spare sessions ready, for ever."""
        await self._pool.keep_filled()

    async def take_over(self) -> None:
        """Goes on with what earlier servers with the same settings have left."""
        await self._takeover.run()

    async def sync_journals(self) -> None:
        """Has the disk keep what was journaled, every second; for ever."""
        while True:
            await anyio.sleep(SYNC_SECONDS)
            if not self.journals.is_synced:
                try:
                    await anyio.to_thread.run_sync(self.journals.sync)
                except OSError as error:
                    logger.warning("a journal may not survive a power cut: %s", error)

    async def sweep_journals(self) -> None:
        """Removes old journals, every hour; for ever. That of a session that there is stays."""
        while True:
            try:
                await anyio.to_thread.run_sync(self.journals.sweep, max(self.limits.notebook_ttl, self.limits.ttl))
            except Exception:  # it reads what other servers have left, and must not end this one
                logger.exception("old journals could not be removed")
            await anyio.sleep(SWEEP_SECONDS)

    async def expire_idle_sessions(self) -> None:
        """Ends sessions that nobody has used for the TTL, for ever."""
        while True:
            await anyio.sleep(min(EXPIRY_CHECK_SECONDS, self.limits.ttl / 4))
            for session in list(self._sessions.values()):
                if session.idle_seconds > self.limits.ttl:
                    logger.info("session %s expired", session.session_id)
                    await self._end(session, SessionExpired(session.session_id, self.limits.ttl), clear=True)


def _new_id() -> str:
    return secrets.token_hex(16)  # 128 bits: the id is all that a client needs to use the session


@asynccontextmanager
async def open_registry(hosts: KernelHosts, limits: Limits, journals: JournalFolder) -> AsyncIterator[Registry]:
    """A registry whose sessions and container end with the block."""
    with Context() as context:
        async with running() as tasks:
            registry = Registry(hosts, limits, journals, context, tasks)
            tasks.start_soon(registry.expire_idle_sessions)
            tasks.start_soon(registry.sync_journals)
            tasks.start_soon(registry.sweep_journals)
            tasks.start_soon(registry.keep_spares)
            tasks.start_soon(registry.take_over)
            try:
                yield registry
            finally:
                with anyio.CancelScope(shield=True):
                    await registry.leave()
