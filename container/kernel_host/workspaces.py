"""How much disk each session's files take, and a stop for those that take more than they may."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from .config import Config
from .holdings import Holdings
from .loop import Loop
from .sessions import Session, Sessions
from .usage import processes_by_uid, with_mark

STEP = 0.1  # of the limit: so much must have been written, by whomever, since a session was last measured
MARGIN = 0.05  # of the limit, or of what stays: one file as large is an error of the session (RLIMIT_FSIZE), and no reason to stop it

Stop = Callable[[Session, dict[str, Any], Callable[[], None]], None]


class Workspaces:
    """Measures by helpers, one for a session: it takes as long as there are files, and nobody waits for another."""

    def __init__(self, config: Config, sessions: Sessions, loop: Loop, stop: Stop) -> None:
        self._config = config
        self._sessions = sessions
        self._loop = loop
        self._stop = stop
        self._free: dict[str, int] = {}  # bytes on the disk, when a session was last measured
        self._measuring: set[str] = set()

    def look(self, sessions: list[Session]) -> None:
        """Measures those since whose last measurement much has been written."""
        limit = self._config.workspace_bytes
        if not limit:
            return
        status = os.statvfs(self._config.workspace_dir)
        free, before = status.f_bavail * status.f_frsize, self._free
        self._free = {}
        for session in sessions:
            last = max(free, before.get(session.session_id, free))
            due = last - free >= STEP * limit and session.session_id not in self._measuring
            self._free[session.session_id] = free if due else last
            if due:
                self._measure(session, self._judge)

    def _measure(self, session: Session, take: Callable[[Session, int], None]) -> None:
        disk = os.stat(self._config.workspace_dir).st_dev
        uid, mark = session.uid or 0, self._sessions.distinguishing_mark(session)
        self._measuring.add(session.session_id)

        def work() -> dict[str, Any]:
            holdings = Holdings(uid, with_mark(processes_by_uid().get(uid, []), mark), disk)
            return {"bytes": holdings.on_disk([session.workspace, session.private])}

        def finish(message: dict[str, Any]) -> None:
            self._measuring.discard(session.session_id)
            if "result" in message:
                take(session, int(message["result"]["bytes"]))

        self._loop.help(None, work, finish)

    def _judge(self, session: Session, used: int) -> None:
        limit = self._config.workspace_bytes
        # What stays was measured a moment ago, and may be found a bit larger: the same margin as for the limit.
        if used <= max(limit, session.stopped_at) * (1 + MARGIN) or session.pid is None:
            session.stopped_at = min(used, session.stopped_at)
            return
        session.stopped_at = used
        exceeded = {"what": "workspace", "used": used, "limit": limit}
        self._stop(session, exceeded, partial(self._measure, session, self._note))

    def _note(self, session: Session, used: int) -> None:
        """What was written until the stop was over stays, too."""
        session.stopped_at = max(used, session.stopped_at)
