"""Watches what the sessions use together, and stops the one that would harm the others.

The limits of processes (setrlimit(2)) come first: they make an error in the session's code. What they cannot see, many
small processes, shared memory, files without a name, many files, is seen here. Looking is cheap (a few small files of
the kernel's); only when something runs short is each session looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .config import Config
from .fairness import Fairness
from .loop import Loop
from .sessions import Session, Sessions
from .usage import container_memory, full_usage, resident_by_uid

TICK_SECONDS = 0.05  # a few processes can fill a gigabyte in half a second
DISK_SECONDS = 1.0
AHEAD = 2  # ticks: memory that grows as it does now must not reach the limit within them
FULL, NEARLY = 0.95, 0.7  # of a limit
CULPRIT = 0.2  # of a limit: who uses less is not to blame
UNSEEN = 0.5  # of the used memory: where processes hold less than that, helpers look at files without a name
DISK_STEP = 0.1  # of the limit for a workspace: so much must have been written since the last look

End = Callable[[Session], None]


class Supervisor:
    """Looks at intervals; `end` stops a session's processes."""

    def __init__(self, config: Config, sessions: Sessions, loop: Loop, end: End) -> None:
        self._config = config
        self._sessions = sessions
        self._loop = loop
        self._end = end
        self._fairness = Fairness(loop, config.processors)
        self._used = 0
        self._next_tick = 0.0
        self._next_disk = 0.0
        self._free = -1
        self._looking = False

    def next_tick(self) -> float | None:
        """When to call `tick` at the latest (monotonic seconds); None while nothing runs."""
        running = self._sessions.isolated and any(session.pid for session in self._sessions)
        return self._next_tick if running else None

    def tick(self) -> None:
        """Looks, if it is time to."""
        now = time.monotonic()
        if self.next_tick() is None or now < self._next_tick:
            return
        self._next_tick = now + TICK_SECONDS
        self._fairness.look(self._running())
        if self._looking:
            return
        self._look_at_memory()
        if now >= self._next_disk:
            self._next_disk = now + DISK_SECONDS
            self._look_at_disk()

    # -- memory ----------------------------------------------------------------------------------------------------

    def _look_at_memory(self) -> None:
        memory = container_memory()
        used, limit = int(memory["used"]), int(memory["limit"])
        growth, self._used = max(0, used - self._used), used
        if not limit or used < NEARLY * limit or used + AHEAD * growth < FULL * limit:
            return
        resident = resident_by_uid()
        if sum(resident.values()) < UNSEEN * used:
            self._look_closely(lambda usage: int(usage["memory"]), CULPRIT * limit, "memory", limit)
            return
        worst = max(self._running(), key=lambda session: resident.get(session.uid or 0, 0))
        held = resident.get(worst.uid or 0, 0)
        if held > CULPRIT * limit:
            self._stop(worst, "memory", held, limit)

    # -- disk ------------------------------------------------------------------------------------------------------

    def _look_at_disk(self) -> None:
        limit = self._config.workspace_bytes
        if not limit:
            return
        status = os.statvfs(self._config.workspace_dir)
        free = status.f_bavail * status.f_frsize
        if 0 <= self._free - free < DISK_STEP * limit:
            return
        self._free = free
        self._look_closely(lambda usage: int(usage["disk"]), limit, "workspace", limit)

    # -- everybody -------------------------------------------------------------------------------------------------

    def _running(self) -> list[Session]:
        return [session for session in self._sessions if session.pid is not None]

    def _look_closely(self, amount: Callable[[dict[str, Any]], int], most: float, what: str, limit: int) -> None:
        """Asks a helper for each session, and stops the one that has most of it, if that is more than `most`."""
        sessions = self._running()
        amounts: dict[str, int] = {}
        self._looking = True

        def take(session: Session, message: dict[str, Any]) -> None:
            amounts[session.session_id] = amount(message["result"]) if "result" in message else 0
            if len(amounts) < len(sessions):
                return
            self._looking = False
            worst = max(sessions, key=lambda session: amounts[session.session_id])
            held = amounts[worst.session_id]
            if held > max(most, worst.stopped_at.get(what, 0)):
                self._stop(worst, what, held, limit)

        for session in sessions:
            self._loop.help(
                session.uid,
                lambda session=session: full_usage(session.uid, [session.workspace, session.private]),  # type: ignore[misc]
                lambda message, session=session: take(session, message),  # type: ignore[misc]
            )

    def _stop(self, session: Session, what: str, held: int, limit: int) -> None:
        session.exceeded = {"what": what, "used": held, "limit": limit}
        session.stopped_at[what] = held
        self._end(session)
