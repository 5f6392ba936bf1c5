"""Which sessions there are: their UIDs and folders. They outlive their kernels.

A session that was branched from another one is of its family: a process cannot get another UID, nor wider walls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import cleaning, identity
from .beneath import Refused
from .children import Child
from .config import Config
from .lines import Line

SLOTS = 1_000  # the paths of sockets are short: see `rundir` in the server
FIRST_MARK = 1 << 40  # of processes; those of later sessions are lower


class Pair(NamedTuple):
    """Empty folders of root's: a workspace, where it waits for a session to have it, and a private folder."""

    waiting: str
    private: str


@dataclass(frozen=True)
class Checkpoint:
    """A process that keeps a session as it was, and the line on which it is told to fork."""

    process: Child
    line: Line


@dataclass(eq=False)
class Family:
    """A session and what was branched from it.

    Attributes:
        uid: of all of them; None without isolation.
        later: pairs of folders that branches can still have, where Landlock is: what a process may reach can only become
            less, so that they are there, and within its walls, from the beginning.
    """

    uid: int | None
    later: list[Pair] = field(default_factory=list)


@dataclass
class Session:
    """A session's identity and folders.

    Attributes:
        slot: a number that no other present session has; names its run folder.
        mark: of its processes, by which those of a family are told apart.
        pair: what its folders were before, if it is a branch.
        reach: pairs of its family that are within the walls of its own processes.
        line: to its kernel, which is asked for checkpoints on it.
        checkpoints: by their names.
        pid: of its kernel, or None.
        death: the event that told of its last kernel's end.
        started: when that was forked (monotonic seconds).
        exceeded: the limit for which its processes were stopped; told with the kernel's death.
        stopped_at: bytes of files that it had when it was stopped for them: these stay, so that it can remove them.
        on_end: what waits for the end of its kernel.
    """

    session_id: str
    slot: int
    family: Family
    mark: int
    workspace: str
    private: str
    run_dir: str
    pair: Pair | None = None
    reach: list[Pair] = field(default_factory=list)
    line: Line | None = None
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    pid: int | None = None
    death: dict[str, Any] | None = None
    started: float = 0.0
    exceeded: dict[str, Any] | None = None
    stopped_at: int = 0
    on_end: list[Callable[[], None]] = field(default_factory=list)

    @property
    def uid(self) -> int | None:
        """None without isolation."""
        return self.family.uid


class Sessions:
    """Makes, finds and forgets sessions."""

    def __init__(self, config: Config, *, walled: bool) -> None:
        """Has none yet.

        Args:
            walled: Landlock is around each session.
        """
        self._config = config
        self._later = config.branches if walled else 0
        self._marks = FIRST_MARK
        self._pairs: list[Pair] = []
        self._made = 0
        self._sessions: dict[str, Session] = {}
        self._next_slot = 0

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    @property
    def isolated(self) -> bool:
        """Whether each session has a UID of its own."""
        return self._config.isolation == "uid"

    def as_host(self) -> AbstractContextManager[None]:
        """File access as the server's user, to whom the run folder belongs."""
        return identity.acting_as(self._config.host_uid) if self.isolated else nullcontext()

    def find(self, request: dict[str, Any]) -> Session:
        """The session that a request names.

        Raises:
            Refused: there is none of that id.
        """
        try:
            return self._sessions[request["session_id"]]
        except KeyError:
            raise Refused(f"no session {request.get('session_id')!r} in this kernel host") from None

    def find_or_make(self, session_id: str) -> Session:
        """The session of that id; a new one gets a UID, a workspace and a private folder.

        Raises:
            Refused: every UID is taken, or the id is not one.
        """
        if session := self._sessions.get(session_id):
            return session
        slot = self._free_slot()
        uid = self._config.first_uid + slot if self.isolated else None
        self.prepare()
        family = Family(uid, self._pairs[: self._later])
        del self._pairs[: self._later]
        return self._make(session_id, slot, family, None, family.later)

    def prepare(self) -> None:
        """Makes folders for the branches of one more session; nobody waits for that, if it has been done before."""
        while len(self._pairs) < self._later:
            self._made += 1
            pair = Pair(f"{self._config.waiting_dir}/{self._made}", f"{self._config.private_dir}/{self._made}")
            for folder in pair:
                os.mkdir(folder, 0o700)
            self._pairs.append(pair)

    def branch(self, session: Session, session_id: str) -> Session:
        """A new session of the same family, with empty folders.

        Raises:
            Refused: there are as many as there can be, or that id is taken.
        """
        if session_id in self._sessions:
            raise Refused(f"there is a session {session_id} already")
        family = session.family
        if not self._later:
            return self._make(session_id, self._free_place(), family, None, [])
        pair = next((pair for pair in session.reach if pair in family.later), None)
        if pair is None:
            raise Refused(
                f"a session and what was branched from it can have {self._later} branches at a time; close some of them"
            )
        family.later.remove(pair)
        return self._make(session_id, self._free_place(), family, pair, [one for one in session.reach if one != pair])

    def _make(self, session_id: str, slot: int, family: Family, pair: Pair | None, reach: list[Pair]) -> Session:
        if not session_id.isalnum():
            raise Refused("a session id is letters and digits")
        self._marks -= 1
        session = Session(
            session_id,
            slot,
            family,
            self._marks,
            f"{self._config.sessions_dir}/{session_id}",
            pair.private if pair else f"{self._config.private_dir}/{session_id}",
            f"{self._config.run_dir}/{slot}",
            pair,
            list(reach),
        )
        if pair:
            os.rename(pair.waiting, session.workspace)
        for folder in (session.workspace, session.private):
            if not pair:
                os.mkdir(folder, 0o700)
            if family.uid is not None:
                os.chown(folder, family.uid, family.uid)
        self._sessions[session_id] = session
        return session

    def relatives(self, session: Session) -> list[Session]:
        """The other sessions of its family."""
        return [other for other in self if other.family is session.family and other is not session]

    def distinguishing_mark(self, session: Session) -> int:
        """The mark of its processes where its UID does not tell them from others; else 0."""
        return session.mark if self.isolated and self.relatives(session) else 0

    def later_folders(self, session: Session) -> list[str]:
        """Folders that may become those of sessions branched from this one."""
        return [folder for pair in session.reach if pair in session.family.later for folder in pair]

    def _free_place(self) -> int:
        """A number for the run folder of a branch: from above, as sessions with a UID of their own begin below."""
        taken = {session.slot for session in self}
        slot = next((slot for slot in reversed(range(SLOTS)) if slot not in taken), None)
        if slot is None:
            raise Refused("there are as many branches in this kernel host as there can be")
        return slot

    def _free_slot(self) -> int:
        taken = {session.slot for session in self}
        if self.isolated:  # a UID is in use as long as there is one of its family
            taken |= {session.uid - self._config.first_uid for session in self if session.uid is not None}
        if len(taken) >= self._config.uid_count:
            raise Refused("every UID of this kernel host is taken")
        # Round robin: a UID rests as long as possible before another session gets it.
        while self._next_slot % self._config.uid_count in taken:
            self._next_slot += 1
        slot = self._next_slot % self._config.uid_count
        self._next_slot += 1
        return slot

    def empty_run_dir(self, session: Session) -> None:
        """Makes the folder of the session's sockets, or removes what a kernel left in it."""
        with self.as_host():
            os.makedirs(session.run_dir, mode=0o700, exist_ok=True)
            cleaning.empty_folder(session.run_dir)

    def forget(self, session: Session) -> None:
        """Removes the session's folders, which its UID has emptied; the UID of the last of a family is free again."""
        family = session.family
        if session.pair is not None:
            self._take_back(session, session.pair)
        else:
            for folder in (session.workspace, session.private):
                with suppress(OSError):
                    os.rmdir(folder)
        with suppress(OSError):
            self.empty_run_dir(session)
            with self.as_host():
                os.rmdir(session.run_dir)
        self._sessions.pop(session.session_id, None)
        if not self.relatives(session):  # nobody is left whose walls they are within
            self._pairs += family.later
            self._remove_spare_pairs()

    def _remove_spare_pairs(self) -> None:
        """Leaves as many as `prepare` makes: there would be those of the most sessions that there have ever been."""
        spare, self._pairs = self._pairs[self._later :], self._pairs[: self._later]
        for folder in (folder for pair in spare for folder in pair):
            with suppress(OSError):
                os.rmdir(folder)

    def _take_back(self, session: Session, pair: Pair) -> None:
        """Its folders wait again; they are lost where something is left in them."""
        with suppress(OSError):
            for folder in (session.workspace, session.private):
                os.chown(folder, os.getuid(), os.getgid())
                os.chmod(folder, 0o700)
            if not os.listdir(session.workspace) and not os.listdir(session.private):
                os.rename(session.workspace, pair.waiting)
                session.family.later.append(pair)
