"""Complete sessions that stand ready, so that `init` and one-shot calls need not wait for a kernel to start."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import anyio

from kernel_server.errors import KernelServerError
from kernel_server.sessions.session import Session

logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.2  # after a session was taken: its first cell must not share the processor with a kernel that starts
CHECK_SECONDS = 2.0  # between two looks at the memory
RETRY_SECONDS = 5.0

Start = Callable[[], Awaitable[Session]]
End = Callable[[Session], Awaitable[None]]
HasMemory = Callable[[], Awaitable[bool]]


class Pool:
    """Holds up to `size` spare sessions; `keep_filled` is its task. One that has been used never comes back."""

    def __init__(self, size: int, start: Start, end: End, has_memory: HasMemory) -> None:
        self.size = size
        self._start = start
        self._end = end
        self._has_memory = has_memory
        self._spares: deque[Session] = deque()
        self._taken = anyio.Event()

    def find(self, session_id: str) -> Session | None:
        """The spare session of that id."""
        return next((spare for spare in self._spares if spare.session_id == session_id), None)

    def drain(self) -> list[Session]:
        """Takes all, for the caller to end."""
        spares = list(self._spares)
        self._spares.clear()
        return spares

    def take(self) -> Session | None:
        """A session that is the caller's from now on, or None if none is ready."""
        spare = self._spares.popleft() if self._spares else None
        self._taken.set()
        return spare

    async def drop(self, session: Session) -> None:
        """Ends a spare session whose kernel has died."""
        if session in self._spares:
            self._spares.remove(session)
            await self._end(session)

    async def keep_filled(self) -> None:
        """Starts spare sessions, one at a time, and ends them while memory is short; for ever."""
        while True:
            self._taken = anyio.Event()
            try:
                await self._adjust()
            except KernelServerError as error:
                logger.warning("no spare session: %s", error)
                await anyio.sleep(RETRY_SECONDS)
            with anyio.move_on_after(CHECK_SECONDS):
                await self._taken.wait()
            await anyio.sleep(QUIET_SECONDS)

    async def _adjust(self) -> None:
        if not await self._has_memory():
            for spare in self.drain():
                await self._end(spare)
            return
        while len(self._spares) < self.size:
            self._spares.append(await self._start())
