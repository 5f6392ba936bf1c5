"""Which sessions there are: their UIDs and folders. They outlive their kernels.

A session that was branched from another one is of its family: a process cannot get another UID, nor wider walls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from . import cleaning, identity
from .beneath import Refused
from .children import Child
from .config import Config
from .lines import Line

SLOTS = 1_000  # the paths of sockets are short: see `rundir` in the server
FIRST_MARK = 1 << 40  # of processes; those of later sessions are lower


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
        folder: with their private folders.
        count: how many there have been.
        later: numbers of those that there can still be where walls are around them: their folders are there from the
            beginning, because what a process may reach can only become less.
    """

    uid: int | None
    folder: str
    count: int = 1
    later: list[int] = field(default_factory=list)

    def private(self, number: int) -> str:
        """The private folder of its session of that number."""
        return f"{self.folder}/{number}"

    def waiting(self, number: int) -> str:
        """Where the workspace of that number is while there is no such session."""
        return f"{self.folder}/w{number}"


@dataclass
class Session:
    """A session's identity and folders.

    Attributes:
        slot: a number that no other present session has; names its run folder.
        family: to which it belongs, as the session of that `number`.
        mark: of its processes, by which those of a family are told apart.
        reach: numbers of later sessions of its family that its processes could become.
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
    number: int
    mark: int
    workspace: str
    run_dir: str
    reach: list[int] = field(default_factory=list)
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

    @property
    def private(self) -> str:
        """Its folder for what does not belong in the workspace."""
        return self.family.private(self.number)


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
        family = Family(uid, f"{self._config.private_dir}/{session_id}")
        os.mkdir(family.folder, 0o711)
        family.later = list(range(1, self._later + 1))
        for number in family.later:
            os.mkdir(family.private(number), 0o700)
            os.mkdir(family.waiting(number), 0o700)
        return self._make(session_id, slot, family, 0)

    def branch(self, session: Session, session_id: str) -> Session:
        """A new session of the same family, with empty folders.

        Raises:
            Refused: there are as many as there can be, or that id is taken.
        """
        if session_id in self._sessions:
            raise Refused(f"there is a session {session_id} already")
        family = session.family
        if not self._later:
            number = family.count
            family.count += 1
            return self._make(session_id, self._free_place(), family, number)
        number = next((number for number in session.reach if number in family.later), 0)
        if not number:
            raise Refused(
                f"a session and what was branched from it can have {self._later} branches at a time; close some of them"
            )
        branched = self._make(session_id, self._free_place(), family, number)
        family.later.remove(number)
        branched.reach = [number for number in session.reach if number in family.later]
        return branched

    def _make(self, session_id: str, slot: int, family: Family, number: int) -> Session:
        if not session_id.isalnum():
            raise Refused("a session id is letters and digits")
        self._marks -= 1
        workspace, run_dir = f"{self._config.sessions_dir}/{session_id}", f"{self._config.run_dir}/{slot}"
        session = Session(session_id, slot, family, number, self._marks, workspace, run_dir, list(family.later))
        if os.path.isdir(family.waiting(number)):
            os.rename(family.waiting(number), workspace)
        else:
            os.mkdir(workspace, 0o700)
            os.mkdir(session.private, 0o700)
        if family.uid is not None:
            for folder in (workspace, session.private):
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
        family = session.family
        pairs = ((family.private(number), family.waiting(number)) for number in session.reach if number in family.later)
        return [folder for pair in pairs for folder in pair]

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
        if self._later and self.relatives(session):  # others may need them
            with suppress(OSError):
                for folder in (session.workspace, session.private):
                    os.chown(folder, os.getuid(), os.getgid())
                os.rename(session.workspace, family.waiting(session.number))
                family.later.append(session.number)
        else:
            for folder in (session.workspace, session.private):
                with suppress(OSError):
                    os.rmdir(folder)
        with suppress(OSError):
            self.empty_run_dir(session)
            with self.as_host():
                os.rmdir(session.run_dir)
        self._sessions.pop(session.session_id, None)
        if not self.relatives(session):
            for number in family.later:
                with suppress(OSError):
                    os.rmdir(family.private(number))
                    os.rmdir(family.waiting(number))
            with suppress(OSError):
                os.rmdir(family.folder)
