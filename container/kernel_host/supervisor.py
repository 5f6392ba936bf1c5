"""Watches what the sessions use together, and stops the one that would harm the others.

The limits of processes (setrlimit(2)) come first: they make an error in the session's code. What they cannot see, many
small processes, shared memory, files without a name, many files, is seen here. Looking is cheap (a few small files of
the kernel's); only when something runs short is each session looked at.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

from . import identity, sockets
from .config import Config
from .decoys import Decoys
from .fairness import Fairness
from .holdings import IN_MEMORY, Held, Holdings, InMemory
from .loop import Loop
from .sessions import Session, Sessions
from .usage import container_memory, own_memory, processes, processes_by_uid, with_mark
from .workspaces import Workspaces

TICK_SECONDS = 0.05  # a few processes can fill a gigabyte in half a second
FILES_SECONDS = 0.5  # between looks at file systems
LOOK_SECONDS = 0.1  # for a close look at a session, and between such looks
FILES_LOOK_SECONDS = 1.0  # for all files in memory: there are at most as many as their file systems have inodes
STOP_SECONDS = 1.0  # until the memory of a session that was stopped is free, at most
AHEAD_SECONDS = 0.15  # memory that grows as it does now must not reach the limit within them
OFFER_SECONDS = 1.0  # when memory could be full within them, the OOM killer is told whom to take before kernels
FULL, NEARLY = 0.95, 0.7  # of a limit
CULPRIT = 0.2  # of a limit: who uses less is not to blame
CROWDED, SHARE = (
    0.9,
    0.5,
)  # of a folder in memory: when it is as full, nobody may have more, nor more than an equal part
HOLDER = 0.02  # of it: who has less is not among those between whom it is shared


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
        """When to call `tick` at the latest (monotonic seconds); None while there is no session."""
        watching = self._config.supervise and self._sessions.isolated
        return self._last + TICK_SECONDS if watching and self._watched() else None

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
        self._fairness.look(self._watched())
        if now >= self._next_files:
            self._next_files = now + FILES_SECONDS
            self._workspaces.look(self._watched())
            for folder in IN_MEMORY:
                self._look_at_folder(folder)

    def _watched(self) -> list[Session]:
        """All but those that are being stopped: what a kernel has started, or left in files, may outlive it."""
        return [session for session in self._sessions if session.exceeded is None and not session.emptied]

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
        # Of a fork that is on its way nobody knows yet that it is no program.
        users = {session.uid for session in self._sessions} - {one.uid for one in self._sessions if one.forking}
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
        inodes = status.f_files
        if size - free > CROWDED * size and time.monotonic() >= self._resumes:
            self._blame(folder, size - free, None, size, lambda holdings: holdings.in_folder(folder))
        used = inodes - status.f_favail
        if used > CROWDED * inodes and time.monotonic() >= self._resumes:
            self._blame(folder, used, None, inodes, lambda holdings: holdings.inodes_in_folder(folder), unit="files")

    def _blame(
        self,
        what: str,
        used: int,
        most: float | None,
        limit: int,
        *looks: Callable[[Holdings], Held],
        unit: str = "bytes",
    ) -> None:
        """Stops the session that holds most; another look is taken if the one before leaves a doubt who that is.

        In the end nobody is to blame while more was not found than the first one holds, unless that one hides something.

        Args:
            most: who holds less is not to blame; None: who holds less than an equal part of those who hold any.
        """
        ranked: list[tuple[float, Held, Session]] = []
        rest, sure = 0.0, False
        for look in looks:
            held = self._look_at_each(look)
            rest = max(0, used - sum(one.least for one, _ in held))  # of those who do not show all that they hold
            ranked = sorted(((min(one.most, one.least + rest), one, session) for one, session in held), key=_amount)
            sure = len(ranked) < 2 or ranked[-1][1].least >= ranked[-2][0]
            if sure:
                break
        if not ranked:
            return
        amount, first, worst = ranked[-1]
        if not sure and not math.isinf(first.most) and rest > first.least:
            return
        holders = sum(one.least > HOLDER * limit for _, one, _ in ranked)
        if amount > (most if most is not None else min(SHARE, 1 / (1 + holders)) * limit):
            self._resumes = time.monotonic() + STOP_SECONDS
            exceeded = {"what": what, "used": int(amount), "limit": limit, "unit": unit}
            self._stop(worst, exceeded, self._resume, empty_memory=True)

    def _look_at_each(self, look: Callable[[Holdings], Held]) -> list[tuple[Held, Session]]:
        disk, helpers = os.stat(self._config.workspace_dir).st_dev, self._loop.helpers()
        pids = {uid: [pid for pid in found if pid not in helpers] for uid, found in processes_by_uid().items()}
        in_memory, buffers = cache(partial(InMemory, FILES_LOOK_SECONDS)), cache(sockets.bytes_by_user)
        held = []
        for session in self._watched():
            uid = session.uid or 0
            own = with_mark(pids.get(uid, []), self._sessions.distinguishing_mark(session))
            holdings = Holdings(uid, own, disk, LOOK_SECONDS, in_memory=in_memory, buffers=buffers)
            held.append((look(holdings), session))
        return held

    def _resume(self) -> None:
        self._resumes = 0.0


def _amount(ranked: tuple[float, Held, Session]) -> float:
    return ranked[0]
