"""Watches what the sessions use together, and stops the one that would harm the others.

The limits of processes (setrlimit(2)) come first: they make an error in the session's code. What they cannot see, many
small processes, shared memory, files without a name, many files, is seen here. Looking is cheap (a few small files of
the kernel's); only when something runs short is each session looked at.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from . import identity
from .config import Config
from .decoys import Decoys
from .fairness import Fairness
from .holdings import IN_MEMORY, Held, Holdings
from .loop import Loop
from .sessions import Session, Sessions
from .usage import container_memory, own_memory, processes, processes_by_uid, with_mark
from .workspaces import Workspaces

TICK_SECONDS = 0.05  # a few processes can fill a gigabyte in half a second
FILES_SECONDS = 0.5  # between looks at file systems
LOOK_SECONDS = 0.1  # for a close look at a session, and between such looks
STOP_SECONDS = 1.0  # until the memory of a session that was stopped is free, at most
AHEAD_SECONDS = 0.15  # memory that grows as it does now must not reach the limit within them
OFFER_SECONDS = 1.0  # when memory could be full within them, the OOM killer is told whom to take before kernels
FULL, NEARLY = 0.95, 0.7  # of a limit
CULPRIT = 0.2  # of a limit: who uses less is not to blame
CROWDED, SHARE = 0.9, 0.5  # of a folder in memory: when it is as full, nobody may have more


class Stop(Protocol):
    """Ends a session's processes for a limit that it has exceeded, and calls `done` when none is left."""

    def __call__(
        self, session: Session, exceeded: dict[str, Any], done: Callable[[], None], *, empty_memory: bool
    ) -> None: ...


class Supervisor:
    """Looks at intervals."""

    def __init__(self, config: Config, sessions: Sessions, loop: Loop, stop: Stop) -> None:
        self._config = config
        self._sessions = sessions
        self._loop = loop
        self._stop = stop
        self._fairness = Fairness(loop, config.processors)
        self._workspaces = Workspaces(config, sessions, loop, partial(stop, empty_memory=False))
        self._decoys = Decoys(loop)
        self._used = 0
        self._offered: set[tuple[int, int]] = set()
        self._last = 0.0
        self._resumes = self._next_memory = self._next_files = 0.0

    def next_tick(self) -> float | None:
        """When to call `tick` at the latest (monotonic seconds); None while nothing runs."""
        watching = self._config.supervise and self._sessions.isolated
        return self._last + TICK_SECONDS if watching and self._running() else None

    def tick(self) -> None:
        """Looks, if it is time to."""
        now, due = time.monotonic(), self.next_tick()
        if due is None or now < due:
            return
        seconds, self._last = now - self._last, now
        try:
            self._look(seconds, now)
        except Exception:  # what is in /proc is made by sessions too, and all kernels hang on this process
            traceback.print_exc()

    def _look(self, seconds: float, now: float) -> None:
        self._look_at_memory(seconds, now)
        self._decoys.place()
        self._fairness.look(self._running())
        if now >= self._next_files:
            self._next_files = now + FILES_SECONDS
            self._workspaces.look(self._running())
            for folder in IN_MEMORY:
                self._look_at_folder(folder)

    def _running(self) -> list[Session]:
        return [session for session in self._sessions if session.pid is not None and session.exceeded is None]

    def _look_at_memory(self, seconds: float, now: float) -> None:
        memory = container_memory()
        used, limit = int(memory["used"]), int(memory["limit"])
        growth, self._used = max(0, used - self._used) / seconds, used
        if limit and used + OFFER_SECONDS * growth >= limit:
            self._offer_programs()
        short = limit and used >= NEARLY * limit and used + AHEAD_SECONDS * growth >= FULL * limit
        if short and now >= max(self._next_memory, self._resumes):
            self._next_memory = now + LOOK_SECONDS
            used -= own_memory(os.getpid())
            self._blame("memory", used, CULPRIT * limit, limit, Holdings.in_processes, Holdings.in_memory)

    def _offer_programs(self) -> None:
        """It may be faster than we are, and would take the largest process: a kernel that has nothing to do with it."""
        users = {session.uid for session in self._sessions}
        kernels = {session.pid for session in self._sessions}
        # A kernel has the score of the checkpoint that it is forked from.
        kernels |= {one.process.pid for session in self._sessions for one in session.checkpoints.values()}
        programs = {(pid, uid) for pid, uid in processes() if uid in users and pid not in kernels}
        for pid, uid in programs - self._offered:
            identity.offer(pid, uid)
        self._offered = programs

    def _look_at_folder(self, folder: str) -> None:
        status = os.statvfs(folder)
        size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
        if size - free > CROWDED * size and time.monotonic() >= self._resumes:
            self._blame(folder, size - free, SHARE * size, size, lambda holdings: holdings.in_folder(folder))

    def _blame(self, what: str, used: int, most: float, limit: int, *looks: Callable[[Holdings], Held]) -> None:
        """Stops the session that holds most; another look is taken if the one before leaves a doubt who that is."""
        ranked: list[tuple[float, int, Session]] = []
        for look in looks:
            held = self._look_at_each(look)
            rest = max(0, used - sum(one.least for one, _ in held))  # of those who do not show all that they hold
            ranked = sorted(
                [(min(one.most, one.least + rest), one.least, session) for one, session in held], key=_amount
            )
            if len(ranked) < 2 or ranked[-1][1] >= ranked[-2][0]:
                break
        if ranked and ranked[-1][0] > most:
            amount, _, worst = ranked[-1]
            self._resumes = time.monotonic() + STOP_SECONDS
            self._stop(worst, {"what": what, "used": int(amount), "limit": limit}, self._resume, empty_memory=True)

    def _look_at_each(self, look: Callable[[Holdings], Held]) -> list[tuple[Held, Session]]:
        disk, helpers = os.stat(self._config.workspace_dir).st_dev, self._loop.helpers()
        pids = {uid: [pid for pid in found if pid not in helpers] for uid, found in processes_by_uid().items()}
        held = []
        for session in self._running():
            uid = session.uid or 0
            own = with_mark(pids.get(uid, []), self._sessions.distinguishing_mark(session))
            held.append((look(Holdings(uid, own, disk, LOOK_SECONDS)), session))
        return held

    def _resume(self) -> None:
        self._resumes = 0.0


def _amount(ranked: tuple[float, int, Session]) -> float:
    return ranked[0]
