"""The kernel hosts of a server: started when sessions need room, ended when nobody is left in them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from kernel_server.errors import HostLost, KernelServerError
from kernel_server.hosts.base import Death, KeptHost, KernelHost, KernelHosts, Report
from kernel_server.kernels.connection import import_client
from kernel_server.tasks import running

logger = logging.getLogger(__name__)

WAIT_REPORT_SECONDS = 2.0

OnWait = Callable[[str], Awaitable[None]]
"""Told every few seconds, with a line for a person, while a call waits for the container."""


@dataclass(eq=False)
class _HostLife:
    """A kernel host from its start to its end.

    Attributes:
        sessions: how many have their place in it.
        kept: an earlier server has left it, and not all of its sessions go on yet: it is no place for a new one.
    """

    ready: anyio.Event = field(default_factory=anyio.Event)
    stop: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)
    host: KernelHost | None = None
    failure: KernelServerError | None = None
    latest: str = "Starting the container"
    sessions: int = 0
    kept: bool = False


class Fleet:
    """Gives sessions their place: all in one kernel host, or at most `per_host` in each.

    In the second case a host ends with the last of its sessions, so that a session with a host of its own leaves
    nothing behind in it for another one. So does a host of an earlier server in the first case, if there is another.

    Attributes:
        python: version of Python in the host that started last; "" before the first one.
    """

    def __init__(
        self,
        hosts: KernelHosts,
        per_host: int,
        tasks: TaskGroup,
        on_death: Callable[[Death], None],
        on_lost: Callable[[KernelHost], Awaitable[None]],
    ) -> None:
        """Makes an empty fleet.

        Args:
            per_host: 0 is all.
            on_death: told of each kernel that has ended.
            on_lost: told when a host has ended by itself; it ends the sessions that were there.
        """
        self._hosts = hosts
        self._per_host = per_host
        self._tasks = tasks
        self._on_death = on_death
        self._on_lost = on_lost
        self._lives: list[_HostLife] = []  # those that take sessions
        self._not_over: set[_HostLife] = set()
        self.python = ""

    @property
    def begun(self) -> bool:
        """Whether there is a host, or one that starts."""
        return bool(self._lives)

    async def any(self, on_wait: OnWait | None = None) -> KernelHost:
        """Some host, for what needs no session; started if need be. Concurrent first calls start one.

        Raises:
            KernelServerError: it did not start; the next call tries again.
        """
        life = next((life for life in self._lives if not life.kept), None) or self._start()
        return await self._ready(life, on_wait)

    async def place(self, on_wait: OnWait | None = None) -> KernelHost:
        """A host with room, where one more session has its place from now on; raises as `any`."""
        while True:
            life = next(filter(self._has_room, self._lives), None) or self._start()
            life.sessions += 1
            try:
                host = await self._ready(life, on_wait)
            except BaseException:
                self._leave(life)
                raise
            if not life.stop.is_set():
                return host
            # It was reset while it started.

    async def take_over(self, kept: KeptHost) -> KernelHost:
        """A host that an earlier server has left; new sessions come there only after `open`. Raises as `any`."""
        return await self._ready(self._begin(_HostLife(kept=True), kept.take_over), None)

    def open(self, host: KernelHost) -> None:
        """All sessions of a host that was taken over have entered."""
        for life in self._lives:
            life.kept = life.kept and life.host is not host

    def enter(self, host: KernelHost) -> None:
        """A session that is there already has its place from now on."""
        for life in self._lives:
            life.sessions += life.host is host

    def leave(self, host: KernelHost) -> None:
        """A session that had its place there has ended."""
        for life in self._lives:
            if life.host is host:
                self._leave(life)
                break

    def _leave(self, life: _HostLife) -> None:
        life.sessions -= 1
        if not life.sessions and (self._per_host or self._lives[:1] != [life]):
            self._forget(life)
            life.stop.set()

    def _has_room(self, life: _HostLife) -> bool:
        return not life.kept and (not self._per_host or life.sessions < self._per_host)

    def renew(self) -> Callable[[], Awaitable[None]]:
        """Forgets all hosts: calls from now on start a fresh one. Returns what ends the old ones."""
        self._lives = []
        lives = list(self._not_over)  # also those that are ending because nobody is left in them
        clear = self._hosts.renew()

        async def end() -> None:
            for life in lives:
                life.stop.set()
            for life in lives:
                await life.over.wait()
            await clear()

        return end

    def _forget(self, life: _HostLife) -> None:
        if life in self._lives:
            self._lives.remove(life)

    def _start(self) -> _HostLife:
        return self._begin(_HostLife(), self._hosts.start)

    def _begin(self, life: _HostLife, start: Callable[[Report], AbstractAsyncContextManager[KernelHost]]) -> _HostLife:
        self._lives.append(life)
        self._not_over.add(life)
        self._tasks.start_soon(partial(self._hold, life, start))
        self._tasks.start_soon(anyio.to_thread.run_sync, import_client)  # meanwhile
        return life

    async def _ready(self, life: _HostLife, on_wait: OnWait | None) -> KernelHost:
        while not life.ready.is_set():
            with anyio.move_on_after(WAIT_REPORT_SECONDS):
                await life.ready.wait()
            if on_wait is not None and not life.ready.is_set():
                await on_wait(life.latest)
        if life.host is None:
            raise life.failure.again() if life.failure else HostLost("The container did not start.")
        return life.host

    async def _hold(self, life: _HostLife, start: Callable[[Report], AbstractAsyncContextManager[KernelHost]]) -> None:
        def report(line: str) -> None:
            life.latest = line
            logger.info("%s", line)

        try:
            async with start(report) as host:
                life.host, self.python = host, host.description.python
                life.ready.set()

                async def watch() -> None:
                    async for death in host.deaths():
                        self._on_death(death)
                    if life.sessions:
                        logger.error("the container has ended")
                    self._forget(life)
                    await self._on_lost(host)
                    life.stop.set()

                async with running(watch):
                    await life.stop.wait()
        except KernelServerError as error:
            logger.warning("the kernel host failed: %s", error)
            life.failure = error
        except Exception as error:
            logger.exception("the kernel host failed")
            life.failure = HostLost(f"The container could not be started ({type(error).__name__}: {error}).")
        finally:
            self._forget(life)
            self._not_over.discard(life)
            life.ready.set()
            life.over.set()
