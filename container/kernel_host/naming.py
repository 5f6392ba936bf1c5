"""How a session's workspace gets the session's id as its name, and loses it again.

The id is all that a client needs to use a session. It lies in a file that the server hands over, and is read only in
processes that run no code of another session: in the session's own, and in helpers.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from .beneath import Refused

if TYPE_CHECKING:
    from .sessions import Pair

MAX_BYTES = 4096
WAITS, REMOVED, FULL = "waits", "removed", "full"


class Secrets(NamedTuple):
    """What only the session's own processes may know: its id, and the key that signs its kernel's messages."""

    session_id: str
    key: bytes


def read_secrets(descriptor: int) -> Secrets:
    """What the server has handed over; closes it.

    Raises:
        Refused: it is not that.
    """
    data = os.pread(descriptor, MAX_BYTES, 0)  # another process may have read it through the same description
    os.close(descriptor)
    with suppress(ValueError, KeyError, TypeError, AttributeError, UnicodeEncodeError):
        told = json.loads(data)
        session_id, key = told["session_id"], told["key"].encode("ascii")
        if session_id.isalnum():
            return Secrets(session_id, key)
    raise Refused("what the server has handed over is not an id and a key")


def name(waiting: str, sessions_dir: str, session_id: str, uid: int | None) -> str:
    """The session's workspace, which gets its name now unless an earlier kernel has had it; as kernel_host itself.

    It is root's until it has its name: Linux has who renames a folder into another one write in it (rename(2), EACCES).
    """
    path = f"{sessions_dir}/{session_id}"
    with suppress(FileNotFoundError):
        os.rename(waiting, path)
        if uid is not None:
            os.chown(path, uid, uid)
    return path


def unname(home: int, pair: Pair, uid: int | None, *, keep: bool) -> str:
    """The empty workspace waits again, as does the private folder, or both are removed; as kernel_host itself.

    Args:
        keep: they are to wait.

    Returns:
        WAITS or REMOVED; or FULL, where they are not empty, and are the session's as before.
    """
    path = os.readlink(f"/proc/self/fd/{home}")
    folders = (path, pair.private)
    for folder in folders:
        os.chown(folder, os.getuid(), os.getgid())
        os.chmod(folder, 0o700)
    if any(map(os.listdir, folders)):
        for folder in folders:
            if uid is not None:
                os.chown(folder, uid, uid)
        return FULL
    if keep:
        os.rename(path, pair.waiting)
        return WAITS
    for folder in folders:
        os.rmdir(folder)
    return REMOVED
