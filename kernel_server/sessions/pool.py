"""Complete sessions that stand ready, so that `init` and one-shot calls need not wait for a kernel to start."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import anyio

from kernel_server.errors import KernelServerError
from kernel_server.hosts.base import KernelHost
from kernel_server.sessions.session import Session

logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.2  # a first cell must not share the processor with a kernel that starts
CHECK_SECONDS = 2.0  # between two looks at the memory
RETRY_SECONDS = 5.0

Wanted = Callable[[], Awaitable[int]]
Start = Callable[[], Awaitable[Session]]
End = Callable[[Session], Awaitable[None]]


class Pool:
    """Holds spare sessions, as many as are `wanted`; `keep_filled` is its task. One that has been used never comes back."""

    def __init__(self, wanted: Wanted, start: Start, end: End) -> None:
        self._wanted = wanted
        self._start = start
        self._end = end
        self._spares: deque[Session] = deque()
        self._missing = anyio.Event()

    def remove(self, session_id: str) -> Session | None:
        """Takes the spare session of that id, for the caller to end."""
        found = next((spare for spare in self._spares if spare.session_id == session_id), None)
        if found is not None:
            self._spares.remove(found)
        return found

    def drain(self, host: KernelHost | None = None) -> list[Session]:
        """Takes all, or those of one host, for the caller to end."""
        drained = [spare for spare in self._spares if host is None or spare.host is host]
        self._spares = deque(spare for spare in self._spares if spare not in drained)
        return drained

    def take(self) -> Session | None:
        """A session that is the caller's from now on, or None if none is ready."""
        return self._spares.popleft() if self._spares else None

    def refill(self) -> None:
        """Starts what is missing, soon."""
        self._missing.set()

    async def keep_filled(self) -> None:
        """Starts spare sessions, one at a time, and ends those that are not wanted; for ever."""
        while True:
            self._missing = anyio.Event()
            try:
                await self._adjust()
            except KernelServerError as error:
                logger.info("no spare session: %s", error)  # who needs one is told why there is none
                await anyio.sleep(RETRY_SECONDS)
            with anyio.move_on_after(CHECK_SECONDS):
                await self._missing.wait()
            await anyio.sleep(QUIET_SECONDS)

    async def _adjust(self) -> None:
        wanted = await self._wanted()
        while len(self._spares) > wanted:
            await self._end(self._spares.pop())
        while len(self._spares) < wanted:
            self._spares.append(await self._start())
