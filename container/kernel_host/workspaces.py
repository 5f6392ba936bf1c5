"""How much disk each session's files take, and a stop for those that take more than they may."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from . import identity
from .config import Config
from .holdings import Holdings, OnDisk
from .loop import Loop
from .sessions import Session, Sessions
from .usage import processes_by_uid, processor_ticks, with_mark

STEP = 0.1  # of the limit: when so much has been written, by whomever, since a session was last measured, it is again
# Between rounds in which that is done to each session that has worked since: what one writes, another may remove meanwhile.
ROUND_SECONDS = 5.0
REST = 20  # times as long as it took until a session is measured for that again
MARGIN = 0.05  # of the limit, or of what stays: one file as large is an error of the session (RLIMIT_FSIZE), and no reason to stop it
LEAST_FILES = 10_000  # that a session may have, however small its limit

Stop = Callable[[Session, dict[str, Any], Callable[[], None]], None]


class _Left(NamedTuple):
    """Bytes and files of a disk. A file system may not count files: then these are 0."""

    bytes: int
    files: int


class Workspaces:
    """Measures by helpers, one for a session: it takes as long as there are files, and nobody waits for another.

    A session may have as large a part of the disk's files as its limit is of the disk's bytes: a file takes an inode,
    however small it is. Whoever hides something is held to have what is gone from the disk and was found nowhere.
    """

    def __init__(self, config: Config, sessions: Sessions, loop: Loop, stop: Stop) -> None:
        self._config = config
        self._sessions = sessions
        self._loop = loop
        self._stop = stop
        self._room = _Left(0, 0)  # as much as there has ever been
        self._found: dict[str, _Left] = {}  # what sessions had when they were last measured
        self._left: dict[str, _Left] = {}  # what there was then
        self._measuring: set[str] = set()
        self._next_round = 0.0
        self._ticks: dict[int, int] = {}  # of processors, by user, at the last round
        self._rests: dict[str, float] = {}  # until when sessions are left alone by it

    def look(self, sessions: list[Session]) -> None:
        """Measures those since whose last measurement much has been written, new ones, and in rounds those that have worked."""
        limit = self._config.workspace_bytes
        if not limit:
            return
        left, most_files = _left_on(self._config.workspace_dir), self._most_files()
        self._forget()
        self._room = _Left(max(self._room.bytes, left.bytes), max(self._room.files, left.files))
        working = self._working()
        before, self._left = self._left, {}
        for session in sessions:
            last = before.get(session.handle, left)
            last = _Left(max(left.bytes, last.bytes), max(left.files, last.files))
            written = last.bytes - left.bytes >= STEP * limit or last.files - left.files >= STEP * most_files
            worked = session.uid in working and time.monotonic() >= self._rests.get(session.handle, 0.0)
            due = (written or worked or session.handle not in before) and session.handle not in self._measuring
            self._left[session.handle] = left if due else last
            if due:
                self._measure(session, self._judge)

    def _forget(self) -> None:
        there = {session.handle for session in self._sessions}
        self._found = {handle: one for handle, one in self._found.items() if handle in there}
        self._rests = {handle: until for handle, until in self._rests.items() if handle in there}

    def _working(self) -> set[int]:
        """Users whose processes have worked since the last round; none between two."""
        if time.monotonic() < self._next_round:
            return set()
        self._next_round = time.monotonic() + ROUND_SECONDS
        before, ticks = self._ticks, Counter[int]()
        for uid, spent in processor_ticks().values():
            ticks[uid] += spent
        self._ticks = dict(ticks)
        return {uid for uid, spent in ticks.items() if spent != before.get(uid)}

    def _measure(self, session: Session, take: Callable[[Session, OnDisk], None]) -> None:
        if session.emptied:  # its folders are closed
            return
        disk = os.stat(self._config.workspace_dir).st_dev
        uid, mark, private = session.uid or 0, self._sessions.distinguishing_mark(session), session.private
        self._measuring.add(session.handle)
        begun = time.monotonic()

        def work() -> dict[str, Any]:
            with identity.seeing_as(uid):
                os.fchdir(session.home)
            holdings = Holdings(uid, with_mark(processes_by_uid().get(uid, []), mark), disk)
            return holdings.on_disk([".", private])._asdict()

        def finish(message: dict[str, Any]) -> None:
            self._measuring.discard(session.handle)
            self._rests[session.handle] = time.monotonic() + REST * (time.monotonic() - begun)
            if "result" in message:
                take(session, OnDisk(**message["result"]))
            else:  # it could not be measured: again at the next look
                self._left.pop(session.handle, None)

        self._loop.help(None, work, finish, keep=(session.home,))

    def _judge(self, session: Session, found: OnDisk) -> None:
        used = self._held(session, found)
        part = self._part_of_limit(used)
        # What stays was measured a moment ago, and may be found a bit larger: the same margin as for the limit.
        if part <= max(1.0, session.stopped_at) * (1 + MARGIN) or session.exceeded is not None:
            session.stopped_at = min(part, session.stopped_at)
            return
        session.stopped_at = part
        self._stop(session, self._exceeded(used), partial(self._measure, session, self._note))

    def _held(self, session: Session, found: OnDisk) -> _Left:
        self._found[session.handle] = _Left(found.bytes, found.files)
        if not found.hidden:
            return self._found[session.handle]
        left, held = _left_on(self._config.workspace_dir), self._found.values()
        missing = self._room.bytes - left.bytes - sum(one.bytes for one in held)
        files = self._room.files - left.files - sum(one.files for one in held)
        return _Left(found.bytes + max(0, missing), found.files + max(0, files))

    def _part_of_limit(self, used: _Left) -> float:
        return max(used.bytes / self._config.workspace_bytes, used.files / self._most_files())

    def _exceeded(self, used: _Left) -> dict[str, Any]:
        limit, most_files = self._config.workspace_bytes, self._most_files()
        if used.files / most_files > used.bytes / limit:
            return {"what": "workspace", "used": used.files, "limit": int(most_files), "unit": "files"}
        return {"what": "workspace", "used": used.bytes, "limit": limit, "unit": "bytes"}

    def _note(self, session: Session, found: OnDisk) -> None:
        """What was written until the stop was over stays, too."""
        session.stopped_at = max(self._part_of_limit(self._held(session, found)), session.stopped_at)

    def _most_files(self) -> float:
        """How many files a session may have; infinite where the file system makes inodes as they are needed."""
        status = os.statvfs(self._config.workspace_dir)
        if not status.f_files:
            return math.inf
        part = self._config.workspace_bytes / (status.f_blocks * status.f_frsize)
        return max(LEAST_FILES, status.f_files * part)


def _left_on(folder: str) -> _Left:
    status = os.statvfs(folder)
    return _Left(status.f_bavail * status.f_frsize, status.f_favail)
