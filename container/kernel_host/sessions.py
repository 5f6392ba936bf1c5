"""Which sessions there are: their UIDs and folders. They outlive their kernels.

A session is known here by a handle. Its id, which is all that a client needs to use it, never enters this process,
whose memory every kernel inherits; so neither does the path of its workspace, which ends with the id: `naming`.

A session that was branched from another one is of its family: a process cannot get another UID, nor wider walls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import cleaning, identity, naming
from .beneath import Refused
from .children import Child
from .config import Config
from .lines import Line

SLOTS = 1_000  # the paths of sockets are short: see `rundir` in the server
FIRST_MARK = 1 << 40  # of processes; those of later sessions are lower
NO_ROOM = "the disk of the workspaces has no room for another session; remove files in sessions, or close some"


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


@dataclass(eq=False)
class Session:
    """A session's identity and folders.

    Attributes:
        handle: what the server calls it here.
        slot: a number that no other present session has; names its run folder.
        mark: of its processes, by which those of a family are told apart.
        pair: its folders as they were before it had them.
        home: descriptor of its workspace, whose path is not known here.
        shared: its pair is one of its family's, and goes back to it.
        reach: pairs of its family that are within the walls of its own processes.
        line: to its kernel, which is asked for checkpoints on it.
        checkpoints: by their names.
        pid: of its kernel, or None.
        death: the event that told of its last kernel's end.
        started: when that was forked (monotonic seconds).
        forking: how many forks of its processes are on their way to be kernels or checkpoints, and not known yet.
        exceeded: the limit for which its processes were stopped; told with the kernel's death.
        stopped_at: what its files took of the disk when it was stopped for them: these stay, so that it can remove them.
        on_end: what waits for the end of its kernel.
        cleared: how often it was tried to remove all that it owns; from the first time on it takes no other request.
        clears_again: it will be tried once more.
        emptied: its processes have ended, and its folders are empty: only they are still to be given back.
    """

    handle: str
    slot: int
    family: Family
    mark: int
    pair: Pair
    home: int
    run_dir: str
    shared: bool = False
    reach: list[Pair] = field(default_factory=list)
    line: Line | None = None
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    pid: int | None = None
    death: dict[str, Any] | None = None
    started: float = 0.0
    forking: int = 0
    exceeded: dict[str, Any] | None = None
    stopped_at: float = 0.0
    on_end: list[Callable[[], None]] = field(default_factory=list)
    cleared: int = 0
    clears_again: bool = False
    emptied: bool = False

    @property
    def uid(self) -> int | None:
        """None without isolation."""
        return self.family.uid

    @property
    def private(self) -> str:
        """Its folder for temporary files, caches and the files of its checkpoints."""
        return self.pair.private


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

    def open_handed(self, name: str) -> int:
        """Opens a file in which the server hands over what must not enter this process; the caller closes it.

        Raises:
            Refused: that is no name of one, or it is not there.
        """
        if not name.isalnum():
            raise Refused("the name of a file that is handed over is letters and digits")
        try:
            with self.as_host():
                return os.open(f"{self._config.run_dir}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise Refused(f"what the server has handed over cannot be read ({error.strerror})") from error

    def find(self, request: dict[str, Any]) -> Session:
        """The session that a request names.

        Raises:
            Refused: there is none of that handle, or it is about to be gone.
        """
        session = self._sessions.get(str(request.get("session")))
        if session is None or session.cleared:
            raise Refused("this kernel host has no such session")
        return session

    def find_any(self, request: dict[str, Any]) -> Session:
        """The same for one whose clearing has begun, too."""
        try:
            return self._sessions[str(request.get("session"))]
        except KeyError:
            raise Refused("this kernel host has no such session") from None

    def find_or_make(self, handle: str) -> Session:
        """The session of that handle; a new one gets a UID, a workspace and a private folder.

        Raises:
            Refused: every UID is taken, there is no room on the disk, or the handle is none.
        """
        if handle in self._sessions:
            return self.find({"session": handle})
        slot = self._free_slot()
        uid = self._config.first_uid + slot if self.isolated else None
        try:
            self.prepare()
            own = self._make_pair()
        except OSError as error:
            raise Refused(f"{NO_ROOM} ({error.strerror})") from error
        family = Family(uid, self._pairs[: self._later])
        del self._pairs[: self._later]
        return self._make(handle, slot, family, own, family.later)

    def prepare(self) -> None:
        """Makes folders for the branches of one more session; nobody waits for that, if it has been done before.

        Raises:
            OSError: there is no room on the disk.
        """
        while len(self._pairs) < self._later:
            self._pairs.append(self._make_pair())

    def _make_pair(self) -> Pair:
        self._made += 1
        pair = Pair(f"{self._config.waiting_dir}/{self._made}", f"{self._config.private_dir}/{self._made}")
        os.mkdir(pair.waiting, 0o700)
        try:
            os.mkdir(pair.private, 0o700)
        except OSError:
            os.rmdir(pair.waiting)
            raise
        return pair

    def branch(self, session: Session, handle: str) -> Session:
        """A new session of the same family, with empty folders.

        Raises:
            Refused: there are as many as there can be, or that handle is taken.
        """
        if handle in self._sessions:
            raise Refused("there is a session of that handle already")
        family = session.family
        if not self._later:
            return self._make(handle, self._free_place(), family, self._make_pair(), [])
        pair = next((pair for pair in session.reach if pair in family.later), None)
        if pair is None:
            raise Refused(
                f"a session and what was branched from it can have {self._later} branches at a time; close some of them"
            )
        family.later.remove(pair)
        reach = [one for one in session.reach if one != pair]
        return self._make(handle, self._free_place(), family, pair, reach, shared=True)

    def _make(
        self, handle: str, slot: int, family: Family, pair: Pair, reach: list[Pair], *, shared: bool = False
    ) -> Session:
        if not handle.isalnum():
            raise Refused("a handle is letters and digits")
        self._marks -= 1
        home = os.open(pair.waiting, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        run_dir = f"{self._config.run_dir}/{slot}"
        session = Session(handle, slot, family, self._marks, pair, home, run_dir, shared, list(reach))
        if family.uid is not None:
            os.chown(pair.private, family.uid, family.uid)
        self._sessions[handle] = session
        return session

    def relatives(self, session: Session) -> list[Session]:
        """The other sessions of its family."""
        return [other for other in self if other.family is session.family and other is not session]

    def living_relatives(self, session: Session) -> list[Session]:
        """Those that still have processes, or may."""
        return [other for other in self.relatives(session) if not other.emptied]

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

    def release(self, session: Session) -> Callable[[], dict[str, Any]]:
        """What a helper of ours does with the session's folders, which its UID has emptied; see `forget`."""

        def body() -> dict[str, Any]:
            return {"became": naming.unname(session.home, session.pair, session.uid, keep=session.shared)}

        return body

    def forget(self, session: Session, *, returned: bool) -> None:
        """It is gone; the UID of the last of a family is free again.

        Args:
            returned: its folders wait again for another one of its family.
        """
        family = session.family
        if returned:
            family.later.append(session.pair)
        with suppress(OSError):
            self.empty_run_dir(session)
            with self.as_host():
                os.rmdir(session.run_dir)
        self._sessions.pop(session.handle, None)
        if not self.relatives(session):  # nobody is left whose walls they are within
            self._pairs += family.later
            self._remove_spare_pairs()

    def _remove_spare_pairs(self) -> None:
        """Leaves as many as `prepare` makes: there would be those of the most sessions that there have ever been."""
        spare, self._pairs = self._pairs[self._later :], self._pairs[: self._later]
        for folder in (folder for pair in spare for folder in pair):
            with suppress(OSError):
                os.rmdir(folder)
