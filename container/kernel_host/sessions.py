"""Which sessions there are: their UIDs and folders. They outlive their kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from . import cleaning, identity
from .beneath import Refused
from .config import Config


@dataclass
class Session:
    """A session's identity and folders.

    Attributes:
        slot: a number that no other present session has; names its run folder.
        uid: None without isolation.
        pid: of its kernel, or None.
        death: the event that told of its last kernel's end.
        started: when that was forked (monotonic seconds).
        exceeded: the limit for which its processes were stopped; told with the kernel's death.
        stopped_at: bytes of files that it had when it was stopped for them: these stay, so that it can remove them.
        on_end: what waits for the end of its kernel.
    """

    session_id: str
    slot: int
    uid: int | None
    workspace: str
    private: str
    run_dir: str
    pid: int | None = None
    death: dict[str, Any] | None = None
    started: float = 0.0
    exceeded: dict[str, Any] | None = None
    stopped_at: int = 0
    on_end: list[Callable[[], None]] = field(default_factory=list)


class Sessions:
    """Makes, finds and forgets sessions."""

    def __init__(self, config: Config) -> None:
        self._config = config
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
        if not session_id.isalnum():
            raise Refused("a session id is letters and digits")
        slot = self._free_slot()
        session = Session(
            session_id,
            slot,
            self._config.first_uid + slot if self.isolated else None,
            f"{self._config.sessions_dir}/{session_id}",
            f"{self._config.private_dir}/{session_id}",
            f"{self._config.run_dir}/{slot}",
        )
        for folder in (session.workspace, session.private):
            os.mkdir(folder, 0o700)
            if session.uid is not None:
                os.chown(folder, session.uid, session.uid)
        self._sessions[session_id] = session
        return session

    def _free_slot(self) -> int:
        taken = {session.slot for session in self}
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
        """Removes the session's folders, which its UID has emptied; its UID is free again."""
        for folder in (session.workspace, session.private):
            with suppress(OSError):
                os.rmdir(folder)
        with suppress(OSError):
            self.empty_run_dir(session)
            with self.as_host():
                os.rmdir(session.run_dir)
        self._sessions.pop(session.session_id, None)
