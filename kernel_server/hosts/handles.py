"""What a kernel host calls the sessions: by handles, from which nobody finds the id that a client needs to use one.

Every kernel is forked from the kernel host and has its memory: the id of another session must not be in it.
"""

from __future__ import annotations

import hashlib

LENGTH = 32  # hexadecimal digits


class Handles:
    """Those of one kernel host."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def of(self, session_id: str) -> str:
        """The handle of a session; "" for ""."""
        if not session_id or session_id in self._ids:  # one that `session_id` did not know
            return session_id
        handle = hashlib.sha256(f"kernel-server session {session_id}".encode()).hexdigest()[:LENGTH]
        self._ids[handle] = session_id
        return handle

    def session_id(self, handle: str) -> str:
        """The session of a handle; of one that is not known, the handle in its place."""
        return self._ids.setdefault(handle, handle)

    def forget(self, session_id: str) -> None:
        """There is no such session any more."""
        self._ids.pop(self.of(session_id), None)
